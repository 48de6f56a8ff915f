"""Subspace scores of synthetic inputs: a lab without a store or a model, and a stored run for pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from subspace_inputs import Arrays

from engine.lab.experiment import Result
from engine.subspaces.numbers import Inputs, Target
from engine.subspaces.own_candidates import OwnFile
from engine.subspaces.spec import DEFINITIONS, SubspaceScores
from store.reader import Store
from store.runs import RunLog

DELTAS = ("tuned", "tuned_again")
SMALL: dict[str, Any] = {"ks": (1, 2, 3, 4, 6, 8), "cleans": (0, 1, 2, 4), "broad": 12}


@dataclass
class SyntheticLab:
    """What subspace scores ask of a lab (`engine.lab.experiment.Lab`), and nothing else."""

    inputs: Inputs
    targets: Sequence[Target]
    own: OwnFile | None = None
    notes: list[str] = field(default_factory=list)
    reported: list[dict[str, Any]] = field(default_factory=list)
    stop_after: int | None = None

    def subspaces(self) -> tuple[str, Inputs, Sequence[Target]]:
        return "base", self.inputs, self.targets

    def own_file(self) -> OwnFile | None:
        return self.own

    def report(self, **changes: Any) -> None:
        self.reported.append(changes)

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.reported) > self.stop_after


def synthetic_lab(layers: int = 5, own: OwnFile | None = None, **sizes: Any) -> SyntheticLab:
    """Two weight changes of one model, at blocks 1 to 3."""
    first, second = Arrays(layers=layers, **sizes), Arrays(layers=layers, seed=1, **sizes)
    targets = [
        replace(arrays.target(), name=name) for arrays, name in zip((first, second), DELTAS, strict=True)
    ]
    return SyntheticLab(first.inputs(), targets, own)


@lru_cache(maxsize=2)
def result(layers: int = 5) -> Result:
    """A small run."""
    return SubspaceScores(**SMALL).run(synthetic_lab(layers))  # type: ignore[arg-type]


def store_run(path: Path | str, wanted: SubspaceScores | None = None) -> str:
    """Puts a small run into a store of as many layers as the store's first model has; its id.

    `wanted` is what it is stored as; by default what `precompute.py` runs.
    """
    store, wanted = Store(path), wanted or SubspaceScores(definitions=DEFINITIONS)
    found = result(int(store.model_info(store.models[0])["n_layers"]))
    tables: dict[str, pl.DataFrame] = dict(found.tables)
    key = wanted.content_hash(store.fingerprint)
    return RunLog(path).append(wanted.to_json(), found.summary, tables.pop("table"), tables, content_hash=key)
