"""Numbers of a real model for nulls: streams of SmolLM2-135M-Instruct, and effects of patches in it.

    python -m benchmarks.calibration.streams runs/smollm2

writes `streams.npz` beside this file from the store that `make demo-real` leaves. The study's prompts go
through the base once more, one by one, for the streams of another batch shape.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.models.loading import load
from engine.study.study import Study
from store.bfloat16 import widen
from store.reader import Store
from store.runs import Run, RunLog

FILE = Path(__file__).with_name("streams.npz")
STUDY = Path(__file__).resolve().parents[2] / "studies/smollm2-sycophancy.toml"
STATES = (0, 1, 2, 10, 20, 29)
"""From the embedding on, as rules ask from where on models differ. Not the last one, which transformers hands
out behind the final norm."""
PATCH = {"target": "base", "source": "sycophantic", "component": "resid_post"}


@dataclass(frozen=True)
class Streams:
    """What the file holds.

    Attributes:
        one: (states, n, d) bfloat16 streams of the base at the decision token, as a store keeps them.
        other: the same of passes of one prompt each.
        category, group: (n,) of a prompt, and of the pair that it belongs to.
        raw, mapped: (blocks, n) KL of patches of the adapter's stream into the base, moment-matched and
            mapped at the amplitude chosen on train, nats.
    """

    one: NDArray[np.float64]
    other: NDArray[np.float64]
    category: NDArray[np.intp]
    group: NDArray[np.intp]
    raw: NDArray[np.float64]
    mapped: NDArray[np.float64]


@cache
def streams() -> Streams:
    """The file's numbers."""
    with np.load(FILE) as held:
        both = {name: widen(held[name]).astype(np.float64) for name in ("one", "other")}
        kls = {name: held[name].astype(np.float64) for name in ("raw", "mapped")}
        return Streams(**both, category=held["category"], group=held["group"], **kls)


def alone(store: Store) -> NDArray[np.uint16]:
    """Bits of the base's streams (states, n, d), of passes of one prompt each."""
    model = load(Study.load(STUDY).models["base"], "base").model
    found = []
    for ids in store.tokens("base")["token_ids"].to_list():
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found.append(torch.stack([states[at][0, -1] for at in STATES]))
    return np.asarray(torch.stack(found, 1).view(torch.uint16).numpy())


def effects(path: Path) -> dict[str, NDArray[np.float32]]:
    """KL of every prompt (patches, n), moment-matched and mapped, of the adapter's streams in the base."""
    log = RunLog(path)
    tables = [run.tables["prompts"].sort("row") for run in map(log.open, log.ids()) if _is_patch(run)]
    return {
        name: np.array([table[f"kl_{name}"] for table in tables], dtype=np.float32)
        for name in ("raw", "mapped")
    }


def _is_patch(run: Run) -> bool:
    return "prompts" in run.tables and all(run.condition.get(name) == value for name, value in PATCH.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("store", type=Path)
    path = parser.parse_args().store
    store = Store(path)
    one = [store.activations("base", "resid", at, "decision", stored=True) for at in STATES]
    labels = (
        store.prompts[name].rank("dense").to_numpy().astype(np.int16) for name in ("category", "pair_id")
    )
    found: dict[str, Any] = dict(zip(("category", "group"), labels, strict=True)) | effects(path)
    np.savez_compressed(FILE, one=np.stack(one), other=alone(store), **found)


if __name__ == "__main__":
    main()
