"""CKA curves of 33 layers × 4 components at n = 600 from a store, with 1000 bootstrap resamples.

    python benchmarks/similarity.py [--rounds 3]

Writes a store of Gram matrices of two related models, then reads them and computes both estimators with
their intervals for every layer. Process CPU time, one thread, reading included; the first round is cold.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from engine.similarity import cka
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

PROMPTS, BLOCKS, WIDTH = 600, 32, 512
COMPONENTS = {"resid": BLOCKS + 1, "attn_out": BLOCKS, "mlp_out": BLOCKS, "head_z": BLOCKS}
"""Gram matrices per component. Their cost depends on the prompts only, not on the features' width."""


def write_grams(folder: Path) -> None:
    """Gram matrices of features with a decaying spectrum; the second model drifts away with depth."""
    sizes = ModelPlan(WIDTH, BLOCKS, 4, WIDTH // 4)
    plan = StorePlan({"base": sizes, "tuned": sizes}, {"last_content": PositionPlan()}, PROMPTS)
    rng = np.random.default_rng(0)
    spectrum = (1 / np.arange(1, WIDTH + 1) ** 0.6).astype(np.float32)
    with StoreWriter.create_or_resume(folder, plan, {"name": "grams"}, "f" * 64, durable=False) as writer:
        for component, layers in COMPONENTS.items():
            grams: dict[str, list[np.ndarray]] = {"base": [], "tuned": []}
            for layer in range(layers):
                x, noise = (
                    rng.standard_normal((PROMPTS, WIDTH), dtype=np.float32) * spectrum for _ in range(2)
                )
                grams["base"].append(cka.gram(x, np.float32))
                grams["tuned"].append(cka.gram(x + np.float32(0.5 * layer / layers) * noise, np.float32))
            for model, stack in grams.items():
                writer.write_grams(model, "last_content", component, np.stack(stack))


def measure(store: Store) -> tuple[float, float]:
    """(CPU seconds of everything, of reading alone)."""
    start, reading = time.process_time(), 0.0
    for component in COMPONENTS:
        before = time.process_time()
        base, tuned = (store.grams(model, component) for model in ("base", "tuned"))
        reading += time.process_time() - before
        biased, debiased = cka.bootstrap_curves(base, tuned, n_boot=1000)
        assert np.all(biased.estimate > 0.5)
        assert np.all(debiased.low <= debiased.estimate)
    return time.process_time() - start, reading


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--rounds", type=int, default=3)
    rounds = options.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        write_grams(Path(folder) / "store")
        store = Store(Path(folder) / "store")
        found = [measure(store) for _ in range(rounds)]
    print("| round | CPU s, everything | of it reading |\n|---|---|---|")
    for number, (total, reading) in enumerate(found):
        print(f"| {number} | {total:.2f} | {reading:.2f} |")
    print(json.dumps({"total_s": [t for t, _ in found], "reading_s": [r for _, r in found]}))


if __name__ == "__main__":
    main()
