"""Similarity on 10,000 prompts: bytes of Gram matrices, CPU time to make them, of a first view, of a click.

    python benchmarks/many_prompts.py [--prompts 10000] [--folder FOLDER]

Writes the residual stream of two related models for prompts in pairs, once narrow (8 blocks of width 128,
whose Grams are made when they are looked at) and once wide (4 blocks of width 4096, whose Grams of a sample
are kept), then does what precompute and the Similarity page do. Process CPU time, one thread. "One block"
starts from the store: both Grams, both estimators with 1000 resamples, the null of 199 wrong pairings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import polars as pl

from app.build.grams import derive
from app.charts.palette import LIGHT
from app.frame import prompts as queries
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults
from app.similarity import panels as similarity
from engine.similarity import cka
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

SIZES = {"narrow": (8, 128), "wide": (4, 4096)}
PANELS = (similarity.curve_panel, similarity.language_panel, similarity.heatmap_panel)


def cpu_ms(work: Callable[[], object]) -> float:
    """Process CPU time of a call, ms."""
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin)


def view(opened: Opened, selection: Selection) -> None:
    """What the server does for a view of the page."""
    for make in PANELS:
        panel = make(opened, selection)
        if panel is not None:
            json.dumps(panel.draw(LIGHT).spec())


def build(folder: Path, blocks: int, width: int, prompts: int) -> float:
    """Writes the store; CPU milliseconds that the Grams took."""
    sizes = ModelPlan(width, blocks, 8, width // 8)
    plan = StorePlan(
        {"base": sizes, "tuned": sizes}, {"decision": PositionPlan()}, prompts, components=("resid",)
    )
    pairs = [f"p{i // 2}" for i in range(prompts)]
    table = pl.DataFrame(
        {
            "id": [f"{pair}-{i % 2}" for i, pair in enumerate(pairs)],
            "pair_id": pairs,
            "language": ["en", "zh"] * (prompts // 2),
            "category": [f"kind {int(pair[1:]) % 9}" for pair in pairs],
            "split": ["validation" if int(pair[1:]) % 3 == 0 else "train" for pair in pairs],
            "text": "prompt",
        }
    )
    spectrum = (1 / np.arange(1, width + 1) ** 0.6).astype(np.float32)
    with StoreWriter.create_or_resume(folder, plan, {"name": "many"}, "f" * 64, durable=False) as writer:
        writer.write_table("prompts", table)
        for number, model in enumerate(plan.models):
            shared, own = np.random.default_rng(0), np.random.default_rng(1 + number)
            steps = [0.05 * number * block for block in range(blocks + 1)]
            for unit in writer.pending(model):
                size = len(plan.prompts_of(unit)), width
                problem = shared.standard_normal((size[0] // 2, width), dtype=np.float32).repeat(2, 0)
                start = (problem + shared.standard_normal(size, dtype=np.float32)) * spectrum
                away = own.standard_normal(size, dtype=np.float32) * spectrum
                values = {("resid", state): start + step * away for state, step in enumerate(steps)}
                writer.commit(model, unit, {"decision": values})
        spent = cpu_ms(lambda: derive(Store(folder), writer))
        writer.finish({"self_checks": []})
    return spent


def one_block(opened: Opened) -> None:
    """Everything of one block from the store."""
    store = opened.store
    rows = queries.looked_at(opened.store, ("all",) * 3)
    grams = []
    for model in store.models:
        if store.has_grams(model, "resid", "decision"):
            grams.append(store.gram(model, "resid_post", 1, "decision"))
        else:
            read = store.activations(model, "resid_post", 1, "decision", rows=rows)
            grams.append(cka.gram(read, np.float32))
    groups, roles = queries.groups(opened.store, rows), queries.roles(opened.store, rows)
    cka.bootstrap_curves(*grams, groups=groups, n_boot=queries.RESAMPLES)
    cka.permutation_null(*grams, groups=groups, roles=roles, n_draws=queries.PERMUTATIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the stores are written; default: a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="patchbay-many-"))
    names = "width, prompts looked at, Grams MB, of activations, precompute ms/Gram, first view ms/block, "
    print(f"| {names}layer click ms, one block ms, again |".replace(", ", " | "))
    print("|" + "---:|" * 9)
    try:
        for name, (blocks, width) in SIZES.items():
            path = folder / name
            spent = build(path, blocks, width, options.prompts)
            store = Store(path)
            opened = Opened(str(path), store, read_facts(store))
            start, use = dataclasses.replace(defaults(opened.facts), position="decision"), store.disk_use()
            first = cpu_ms(partial(view, opened, start))
            clicked = [dataclasses.replace(start, layer=block) for block in range(1, blocks)]
            click = [cpu_ms(partial(view, opened, selection)) for selection in clicked]
            again = [cpu_ms(partial(one_block, opened)) for _ in range(3)]
            figures = (
                f"{width}",
                f"{queries.looked_at(opened.store, ('all',) * 3).size}",
                f"{use['grams'] / 1e6:.0f}",
                f"{use['grams'] / use['raw']:.2f}",
                f"{spent / 2 / (blocks + 1):.0f}",
                f"{first / blocks:.0f}",
                f"{np.median(click):.0f}",
                f"{again[0]:.0f}",
                f"{min(again[1:]):.0f}",
            )
            print("| " + " | ".join(figures) + " |", flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
