"""The chapters of live experiments: stored runs of the pair, through the panels of their pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from app import live_view, patch_view, runs_view
from app.jobs import JobResult
from app.panel import Panel
from app.report.blocks import Block, Section, Table, Text
from app.report.sections import collect
from app.resources import Opened
from app.selection import Selection, update
from engine.condition import Condition
from engine.errors import PatchbayError
from engine.experiment import Experiment
from engine.experiments import experiment_from_json
from store.runs import RunLog

MOST = 4
"""Runs of one kind that are shown in full, the newest ones."""

Asked = tuple[dict[str, Any], dict[str, Any]]
"""(condition, summary with run_id and created) of a stored run."""


@dataclass(frozen=True)
class Kind:
    """A kind of live experiment as its page module shows it.

    Args:
        jobs: values of `job` that belong to it.
        selection_of: changes to a selection that a stored condition means.
        panels: of one stored result.
        nothing: why a result has no panels, or None.
    """

    name: str
    title: str
    intro: str
    jobs: tuple[str, ...]
    selection_of: Callable[[Mapping[str, Any], Selection], dict[str, Any]]
    panels: Callable[[Opened, JobResult, Selection], Sequence[Panel]]
    nothing: Callable[[JobResult], tuple[str, str] | None] = lambda _result: None


def of_pair(opened: Opened, selection: Selection, jobs: Sequence[str]) -> list[Asked]:
    """Intact stored runs of some kinds whose models belong to the pair, newest first."""
    found = []
    for condition, summary in live_view.runs_of(opened, None):
        models = {condition.get("target"), condition.get("source"), condition.get("model")} - {None}
        if condition.get("job", "patch") in jobs and models <= {selection.a, selection.b}:
            found.append((condition, summary))
    return found


def section(kind: Kind, opened: Opened, selection: Selection) -> Section:
    """The newest runs of a kind, each with the panels that its page shows."""
    found = of_pair(opened, selection, kind.jobs)
    if not found:
        missing = f"No run of this kind is stored for {selection.a} and {selection.b}."
        return Section(kind.name, kind.title, kind.intro, missing=missing)
    blocks = [block for run in found[:MOST] for block in _run(kind, opened, selection, run)]
    older = len(found) - MOST
    if older > 0:
        blocks.append(Text(f"{older} older runs of this kind are listed under Provenance."))
    return Section(kind.name, kind.title, kind.intro, tuple(blocks))


def _run(kind: Kind, opened: Opened, selection: Selection, run: Asked) -> Iterator[Block]:
    condition, summary = run
    yield Text(f"Run {summary['run_id']}, {summary['created'][:16].replace('T', ' ')}.", describe(condition))
    try:
        stored = RunLog(opened.path).open(summary["run_id"])
        result = JobResult(stored.condition, stored.summary, stored.tables)
        reason = kind.nothing(result)
        seen = update(selection, opened.facts, **kind.selection_of(condition, selection))
        panels = kind.panels(opened, result, seen)
    except PatchbayError as error:
        yield Text(str(error))
        return
    if reason is not None:
        yield Text(f"{reason[0]}. {reason[1]}")
    yield from panels
    for note in stored.summary.get("notes", []):
        yield Text(str(note))


def describe(condition: Mapping[str, Any]) -> str:
    """A stored condition in one line, also one of another version."""
    try:
        return experiment_from_json(condition).describe()
    except PatchbayError:
        return str(condition.get("job", "patch"))


def plain_patches(opened: Opened, selection: Selection) -> Section:
    """Patches without a map: what was run, effect over blocks, and the strongest run of each profile."""
    title, intro = "Patching", "What does one model's activation do in the other?"
    found = of_pair(opened, selection, ("patch",))
    if not found:
        missing = f"No patch between {selection.a} and {selection.b} is stored."
        return Section("patching", title, intro, missing=missing)
    ids = [summary["run_id"] for _, summary in found]
    listed = runs_view.table(opened).filter(pl.col("run").is_in(ids))
    blocks: list[Block] = [Table("patches", f"Patches: {len(found)} runs", listed, INTERVAL)]
    profiles = _profiles(found)
    for conditions in profiles[:MOST]:
        blocks += collect(_profile_makers(opened, conditions, found))
    if len(profiles) > MOST:
        blocks.append(Text(f"{len(profiles) - MOST} more series of patches are in the table above."))
    return Section("patching", title, intro, tuple(blocks))


INTERVAL = "Mean KL(patched ‖ unpatched) of the next token, with its bootstrap interval."


def _profiles(found: Sequence[Asked]) -> list[list[Asked]]:
    """Runs that differ by nothing but the block, largest group first."""
    groups: dict[str, list[Asked]] = {}
    for condition, summary in found:
        key = json.dumps({k: v for k, v in condition.items() if k != "layer"}, sort_keys=True)
        groups.setdefault(key, []).append((condition, summary))
    return sorted(groups.values(), key=len, reverse=True)


def _profile_makers(
    opened: Opened, group: Sequence[Asked], found: Sequence[Asked]
) -> list[Callable[[], Panel | None]]:
    alpha = 1.0
    strongest = max(group, key=lambda run: _at(run[1], alpha))
    condition = Condition.from_json(strongest[0])
    code = patch_view.code(opened.path, condition)
    profile = patch_view.profile(found, condition, alpha)
    run = runs_view.open_run(opened, strongest[1]["run_id"])
    return [
        partial(patch_view.layer_panel, profile, condition, alpha, code),
        partial(patch_view.histogram_panel, run, alpha, code),
        partial(patch_view.alpha_panel, run, alpha, code),
    ]


def _at(summary: Mapping[str, Any], alpha: float) -> float:
    return float(min(summary["curve"], key=lambda row: abs(row["alpha"] - alpha))["kl"])


def missing_of(opened: Opened, wanted: Sequence[Experiment]) -> list[Experiment]:
    """Those experiments that have no stored result."""
    log = RunLog(opened.path)
    return [e for e in wanted if log.find(e.content_hash(opened.store.fingerprint)) is None]
