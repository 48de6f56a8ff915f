"""What Z costs: head kernels by thin factors against dense ones, and the page of its geometry at 7B size.

    OMP_NUM_THREADS=1 python benchmarks/subspace.py [--folder FOLDER] [--keep] [--svd-only]

First the SVD of one head kernel at d = 2048, d_h = 128 both ways, with the largest principal angle between
their key sides, and all 36 × 16 heads of a 3B model from random weights. Then a store of 7B width (d = 4096,
32 heads of 128 over 8 key heads, 300 problems in two languages, 4 blocks): what the first view of a block
costs, and every move of a slider after it. Process CPU time; one thread unless OMP_NUM_THREADS says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import json
import time

import numpy as np
import polars as pl

from app.charts.palette import LIGHT
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults
from app.geometry import separation as geometry_separation
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from engine.geometry.layers import layer_structure
from engine.geometry.z import head_kernel_svd, principal_angles
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

D, D_H, LAYERS, HEADS = 2048, 128, 36, 16
WIDTH, BLOCKS, MANY, KEYS, PROBLEMS = 4096, 4, 32, 8, 300
LIMIT_MS, LIMIT_S, LEAST_FASTER, LARGEST_ANGLE = 100.0, 60.0, 100.0, 1e-5


def cpu(work: object) -> float:
    """Process CPU seconds of a call."""
    begin = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - begin


def decompositions() -> list[str]:
    """Dense and thin SVD of head kernels; what failed."""
    rng = np.random.default_rng(0)
    w_q, w_k = rng.normal(size=(HEADS, D_H, D)), rng.normal(size=(2, D_H, D))
    found: dict[str, np.ndarray] = {}
    dense = cpu(lambda: found.update(dense=np.linalg.svd(w_q[0].T @ w_k[0])[2][:D_H].T))
    one = [cpu(lambda: found.update(thin=head_kernel_svd(w_q[:1], w_k[:1]).right[0])) for _ in range(5)]
    thin = statistics.median(one)
    angle = max(float(principal_angles(*(v[:, :k] for v in found.values())).max()) for k in (16, D_H))
    print(
        f"one head, d = {D}, d_h = {D_H}: dense {dense:.2f} s, thin {1000 * thin:.1f} ms, {dense / thin:.0f}×"
    )
    print(f"largest principal angle of key sides and of their leading 16: {angle:.1e}")
    wall = time.perf_counter()
    spent = cpu(lambda: [head_kernel_svd(w_q, w_k) for _ in range(LAYERS)])
    print(f"all {LAYERS} × {HEADS} heads: {spent:.1f} s CPU, {time.perf_counter() - wall:.1f} s wall")
    values = rng.random((32, 32))
    print(f"order of 32 blocks, 999 permutations: {1000 * cpu(lambda: layer_structure(values, D, 8)):.1f} ms")
    limits = {
        "thin is not fast enough": dense / thin < LEAST_FASTER,
        "the angle is too large": angle > LARGEST_ANGLE,
        "all heads take too long": spent > LIMIT_S,
    }
    return [name for name, failed in limits.items() if failed]


def build(folder: Path) -> None:
    """A store of 7B width: the stream at two poolings, head kernels with shared keys, gates."""
    rng = np.random.default_rng(0)
    plan = StorePlan(
        models={"base": ModelPlan(WIDTH, BLOCKS, MANY, D_H)},
        positions={"last_content": PositionPlan("one"), "mean": PositionPlan("mean")},
        components=("resid",),
        n_prompts=2 * PROBLEMS,
    )
    pairs = [f"p{i // 2}" for i in range(2 * PROBLEMS)]
    texts = {"id": [f"{p}-{i % 2}" for i, p in enumerate(pairs)], "pair_id": pairs, "text": "prompt"}
    prompts = pl.DataFrame({**texts, "language": ["en", "zh"] * PROBLEMS})
    start = np.repeat(rng.normal(size=(PROBLEMS, WIDTH)), 2, axis=0).astype(np.float32)
    states = []
    for _ in range(BLOCKS + 1):
        start = start + 0.3 * rng.standard_normal(start.shape, dtype=np.float32)
        states.append(start)
    with StoreWriter.create_or_resume(folder, plan, {"name": "7B"}, "7b" * 32, durable=False) as writer:
        writer.write_table("prompts", prompts)
        for unit in writer.pending("base"):
            rows = list(plan.prompts_of(unit))
            part = {("resid", s): v[rows] for s, v in enumerate(states)}
            writer.commit("base", unit, {"last_content": part, "mean": part})
        _write_weights(writer, rng)
        check = {"name": "none", "value": 0.0, "limit": 1.0, "passed": True, "detail": ""}
        writer.finish({"self_checks": [check], "models": {"base": {"n_kv_heads": KEYS}}})


def _write_weights(writer: StoreWriter, rng: np.random.Generator) -> None:
    right, sigma, grams = [], [], []
    for _ in range(BLOCKS):
        shape = (D_H, WIDTH)
        kernels = head_kernel_svd(rng.normal(size=(MANY, *shape)), rng.normal(size=(KEYS, *shape)))
        right.append(kernels.right.astype(np.float32))
        sigma.append(kernels.sigma.astype(np.float32))
        read = rng.standard_normal((2 * WIDTH, KEYS * D_H), dtype=np.float32)
        grams.append(read.T @ read)
    folder = "weights/base"
    writer.write_array(f"{folder}/kernel_right", np.stack(right), ("layer", "head", "feature", "rank"))
    writer.write_array(f"{folder}/kernel_sigma", np.stack(sigma), ("layer", "head", "rank"))
    writer.write_array(f"{folder}/gate_gram", np.stack(grams), ("layer", "direction", "other_direction"))
    totals = np.tile([2.0 * WIDTH * WIDTH, 6.0 * WIDTH**3], (BLOCKS, 1))
    writer.write_array(f"{folder}/gate_moments", totals, ("layer", "moment"))


def render(opened: Opened, selection: Selection) -> int:
    """What the server does for a view once the slow parts are there. Returns bytes sent."""
    found = [draw(opened, selection) for draw in geometry.WEIGHTS]
    for pooling in geometry.poolings(opened, selection):
        found += [make(opened, selection, pooling) for make in geometry_separation.makers(selection)]
    return sum(len(json.dumps(panel.draw(LIGHT).spec())) for panel in found if panel is not None)


def page(folder: Path) -> list[str]:
    """First views and moves; names of moves above the limit."""
    store = Store(folder)
    opened = Opened(str(folder), store, read_facts(store))
    base = geometry.effective(opened, dataclasses.replace(defaults(opened.facts), layer=0, ref=0))

    def prepare(selection: Selection) -> None:
        geometry.prepare(opened, selection, lambda _: lambda *_: None)

    def once(selection: Selection) -> float:
        return cpu(lambda: (prepare(selection), render(opened, selection)))

    compared = cpu(lambda: geometry_queries.structure(opened.store, "base", base.joined))
    print(f"all {BLOCKS} blocks' Z for every k, compared:   {compared:6.1f} s behind a progress bar")
    print(f"first view of a block, both poolings:    {once(base):6.1f} s behind a progress bar")
    other = dataclasses.replace(base, layer=1)
    print(f"first view of another block:             {once(other):6.1f} s behind a progress bar")
    slow = []
    moves: dict[str, Sequence[dict[str, int]]] = {
        "move k": [{"k": k} for k in (1, 3, 12, 48, 128)],
        "move the block": [{"layer": i} for i in (1, 0) * 3],
        "move the reference block": [{"ref": i} for i in (1, 2, 3, 0)],
    }
    for name, changes in moves.items():
        views = [dataclasses.replace(base, **change) for change in changes]  # type: ignore[arg-type]
        spent = 1000 * statistics.median(once(v) for v in views)
        print(f"{name:40s} {spent:6.1f} ms")
        slow += [name] if spent > LIMIT_MS else []
    return slow


def main() -> int:
    """Measure and print; 1 when something is slower or less exact than promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the store is kept; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the store there")
    parser.add_argument("--svd-only", action="store_true", help="without the store and the page")
    options = parser.parse_args()
    failed = decompositions()
    if not options.svd_only:
        folder = options.folder or Path(tempfile.mkdtemp(prefix="patchbay-z-")) / "store"
        try:
            if not (folder / "manifest.json").exists():
                build(folder)
            failed += page(folder)
        finally:
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
    print(f"above its limit: {', '.join(failed) or 'nothing'}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
