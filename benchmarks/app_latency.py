"""CPU time on the server of what a click or a slider move asks, on a store of 7B size.

    python benchmarks/app_latency.py [--folder FOLDER] [--keep]

Writes a store with the sizes of a 7B model (32 blocks, width 4096, 32 heads of 128, 600 prompts in pairs,
random activations with shared structure) for two models, then calls what the pages call: query, words and
chart specification of every panel. Process CPU time with one thread; the first call of a kind is "cold",
what the page shows behind a progress bar; "warm" is the median of five different moves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import polars as pl

from app.charts.palette import LIGHT
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, defaults
from app.residual_updates import panels as updates
from app.similarity import panels as similarity
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

BLOCKS, WIDTH, HEADS, HEAD_DIM, PROMPTS = 32, 4096, 32, 128, 600
LIMIT_MS = 100.0


def build(folder: Path) -> None:
    """Write the store: residual stream at "mean", Grams of the stream, head kernels of two blocks."""
    rng = np.random.default_rng(0)
    sizes = ModelPlan(WIDTH, BLOCKS, HEADS, HEAD_DIM)
    plan = StorePlan(
        models={"base": sizes, "tuned": sizes},
        positions={"mean": PositionPlan("mean")},
        components=("resid",),
        n_prompts=PROMPTS,
    )
    pairs = [f"p{i // 2}" for i in range(PROMPTS)]
    prompts = pl.DataFrame(
        {
            "id": [f"{p}-{i % 2}" for i, p in enumerate(pairs)],
            "pair_id": pairs,
            "language": ["en", "zh"] * (PROMPTS // 2),
            "split": ["train" if int(p[1:]) % 3 else "validation" for p in pairs],
            "text": "prompt",
        }
    )
    start = np.repeat(rng.normal(size=(PROMPTS // 2, WIDTH)), 2, axis=0).astype(np.float32)
    with StoreWriter.create_or_resume(folder, plan, {"name": "7B"}, "7b" * 32, durable=False) as writer:
        writer.write_table("prompts", prompts)
        for number, model in enumerate(plan.models):
            steps = np.random.default_rng(1)
            states, grams, state = [], [], start.copy()
            for _ in range(BLOCKS + 1):
                states.append(state.copy())
                centred = state - state.mean(axis=0)
                grams.append(centred @ centred.T)
                state += 0.3 * steps.standard_normal(state.shape, dtype=np.float32)
                state += 0.02 * number * rng.standard_normal(state.shape, dtype=np.float32)
            for unit in writer.pending(model):
                rows = list(plan.prompts_of(unit))
                writer.commit(model, unit, {"mean": {("resid", s): v[rows] for s, v in enumerate(states)}})
            writer.write_grams(model, "mean", "resid", np.stack(grams))
            _write_kernels(writer, model, rng)
        check = {"name": "none", "value": 0.0, "limit": 1.0, "passed": True, "detail": ""}
        writer.finish({"self_checks": [check]})


def _write_kernels(writer: StoreWriter, model: str, rng: np.random.Generator) -> None:
    factors = rng.standard_normal((2 * HEADS, WIDTH, HEAD_DIM), dtype=np.float32)
    right = np.linalg.qr(factors)[0].reshape(2, HEADS, WIDTH, HEAD_DIM)
    sigma = np.sort(rng.random((2, HEADS, HEAD_DIM), dtype=np.float32))[..., ::-1]
    writer.write_array(f"weights/{model}/kernel_right", right, ("layer", "head", "feature", "rank"))
    writer.write_array(
        f"weights/{model}/kernel_sigma", np.ascontiguousarray(sigma), ("layer", "head", "rank")
    )


Make = Callable[[Opened, Selection], Panel | None]
SIMILARITY: tuple[Make, ...] = (
    similarity.curve_panel,
    similarity.language_panel,
    similarity.heatmap_panel,
)
UPDATES: tuple[Make, ...] = (updates.curve_panel, updates.language_panel)


def render(opened: Opened, selection: Selection, makers: Sequence[Make]) -> int:
    """What the server does for a view: queries, words, chart specification as JSON. Returns its bytes."""
    size = 0
    for make in makers:
        panel = make(opened, selection)
        if panel is not None:
            size += len(json.dumps(panel.draw(LIGHT).spec())) + len(panel.title)
    return size


def cpu_ms(work: Callable[[], object]) -> float:
    """Process CPU time of a call, ms."""
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin)


def moves(
    opened: Opened, start: Selection, changes: Sequence[dict[str, object]], makers: Sequence[Make]
) -> list[float]:
    """CPU time of each of several moves from `start`."""
    views = [dataclasses.replace(start, **change) for change in changes]  # type: ignore[arg-type]
    return [cpu_ms(lambda v=view: render(opened, v, makers)) for view in views]  # type: ignore[misc]


def measure(folder: Path) -> list[tuple[str, str, float]]:
    """(move, kind, CPU ms) of everything the two pages do."""
    store = Store(folder)
    opened = Opened(str(folder), store, read_facts(store))
    first = defaults(opened.facts)
    rows: list[tuple[str, str, float]] = []

    def cold(name: str, view: Selection, makers: Sequence[Make]) -> None:
        rows.append((name, "cold", cpu_ms(lambda: render(opened, view, makers))))

    def warm(
        name: str, view: Selection, changes: Sequence[dict[str, object]], makers: Sequence[Make]
    ) -> None:
        rows.append((name, "warm", statistics.median(moves(opened, view, changes, makers))))

    layers: list[dict[str, object]] = [{"layer": i} for i in (0, 7, 13, 22, 31)]
    cold("similarity: first view of a site", first, SIMILARITY)
    warm("similarity: click a layer", first, layers, SIMILARITY)
    warm("similarity: vertical axis", first, [{"view": v} for v in ("null", "values") * 2], SIMILARITY)
    cold("similarity: other estimator", dataclasses.replace(first, estimator="biased"), SIMILARITY)
    start = updates.effective(opened, dataclasses.replace(first, ref=0))
    cold("updates: first view of a block's Z", start, UPDATES)
    warm("updates: move k", start, [{"k": k} for k in (1, 3, 12, 24, 48)], UPDATES)
    warm("updates: click a layer", start, layers, UPDATES)
    warm("updates: R or R ÷ chance", start, [{"scale": s} for s in ("r_over_chance", "r") * 2], UPDATES)
    cold("updates: other reference block", dataclasses.replace(start, ref=1), UPDATES)
    return rows


def main() -> int:
    """Build the store where it is not there yet, measure, print a table; 1 when a move is too slow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the store is kept; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the store there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="patchbay-7b-")) / "store"
    try:
        if not (folder / "manifest.json").exists():
            build(folder)
        rows = measure(folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    for name, kind, spent in rows:
        print(f"{name:40s} {kind:5s} {spent:9.1f} ms")
    slow = [name for name, kind, spent in rows if kind == "warm" and spent > LIMIT_MS]
    print(f"moves above {LIMIT_MS:.0f} ms: {', '.join(slow) or 'none'}")
    return bool(slow)


if __name__ == "__main__":
    raise SystemExit(main())
