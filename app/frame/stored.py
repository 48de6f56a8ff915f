"""Stored live runs of a pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import polars as pl

from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.running import opened_run
from app.frame.selection import Selection
from app.frame.words import position_said
from engine.errors import PatchbayError
from engine.kinds import experiment_from_json
from engine.lab.beside import KEYS
from engine.lab.experiment import Experiment
from store.journal.notes import NoteLog
from store.journal.tags import ARCHIVED, tags_of

__all__ = [
    "Asked",
    "archived",
    "compact",
    "describe",
    "described",
    "missing_of",
    "of_pair",
    "opened_run",
    "per_prompt",
    "tags",
]

Asked = tuple[Mapping[str, Any], Mapping[str, Any]]
"""(condition, summary with run_id and created) of a stored run."""

ROLES = ("target", "source", "model", "shared_with")
"""Keys of a condition that name a model."""


def of_pair(opened: Opened, selection: Selection, jobs: Collection[str]) -> list[Asked]:
    """Intact runs of some kinds whose models belong to the pair, newest first, without archived ones."""
    found: list[Asked] = []
    left_out = archived(opened)
    for condition, summary in live_view.runs_of(opened, None):
        models = {condition.get(role) for role in ROLES} - {None}
        steered = condition.get("deltas", ()) if condition.get("job") == "weight_steering" else ()
        models |= {delta["plus"] for delta in steered[:1]}
        asked = condition.get("job", "patch") in jobs and models <= {selection.a, selection.b}
        if asked and summary["run_id"] not in left_out:
            found.append((condition, summary))
    return found


def tags(opened: Opened) -> dict[str, tuple[str, ...]]:
    """The tags of every run that has any (`store.journal.tags`)."""
    return _tags(opened.path, opened.store.fingerprint, tuple(NoteLog(opened.path).ids()))


@lru_cache(maxsize=8)
def _tags(path: str, _fingerprint: str, _notes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return tags_of(NoteLog(path).list()[0])


def archived(opened: Opened) -> frozenset[str]:
    """The runs that somebody archived."""
    return frozenset(run for run, given in tags(opened).items() if ARCHIVED in given)


def describe(condition: Mapping[str, Any]) -> str:
    """A stored condition in one line, also one of another version."""
    try:
        return described(experiment_from_json(condition))
    except PatchbayError:
        return str(condition.get("job", "patch"))


def described(experiment: Experiment) -> str:
    """An experiment in one line, its position as its control calls it."""
    text, position = experiment.describe(), getattr(experiment, "position", None)
    return text.replace(f" at {position}", f" at {position_said(position)}") if position else text


def missing_of(opened: Opened, wanted: Sequence[Experiment]) -> list[Experiment]:
    """Those experiments that have no stored result."""
    return [e for e in wanted if live_view.find(opened, e) is None]


def per_prompt(table: pl.DataFrame, figures: Mapping[str, str]) -> pl.DataFrame:
    """A row per prompt for `Kind.each`: what there is of `KEYS`, and columns under names for people."""
    known = {column: name for column, name in figures.items() if column in table.columns}
    return table.select(*(key for key in KEYS if key in table.columns), *known).rename(known)


def compact(experiment: Experiment) -> dict[str, Any]:
    """An experiment as JSON without what it has by default."""
    return {
        "job": experiment.model_dump()["job"],
        **experiment.model_dump(mode="json", exclude_defaults=True),
    }
