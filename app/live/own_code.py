"""Candidates as a store's study has them run now: those of its own file, and the built-in definitions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from engine.lab.experiment import Experiment
from engine.subspaces.own_candidates import OwnFile
from engine.subspaces.spec import DEFINITIONS, SubspaceScores
from store.reader import Store

__all__ = ["own_file", "place_of", "with_own_code"]

Asked = TypeVar("Asked", bound=Experiment)


def place_of(store: Store) -> Path | None:
    """The folder in which a store lies, None for one at a URL; see `engine.study.roots`."""
    return None if "://" in str(store.path) else Path(store.path).absolute().parent


def own_file(store: Store, allowed: bool = False) -> OwnFile | None:
    """The file of candidates that the store's study names; nothing is read or run.

    Args:
        allowed: whether this program was started with `--allow-code`.
    """
    study = store.manifest["study"]
    named = (study.get("subspaces") or {}).get("candidates")
    if named is None:
        return None
    path = Path(os.path.normpath(Path(study["folder"], named)))
    return OwnFile(path, study["content"].get("subspaces.candidates"), allowed)


def with_own_code(experiment: Asked, store: Store, allowed: bool) -> Asked:
    """Subspace scores by today's definitions, with the study's own candidates where they may run; anything
    else as it is."""
    if not isinstance(experiment, SubspaceScores):
        return experiment
    file = own_file(store, allowed)
    code = file.digest or "" if file is not None and allowed else ""
    return experiment.model_copy(update={"definitions": DEFINITIONS, "code": experiment.code or code})
