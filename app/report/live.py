"""The chapters of live experiments: stored runs of the pair, through the panels of their pages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from app import (
    behaviour_view,
    patch_drill,
    patch_table,
    patch_view,
    transport,
    transport_table,
)
from app import transport_queries as tq
from app.jobs import JobResult
from app.panel import Panel
from app.report.blocks import Block, Section, Table, Text
from app.report.runs import Asked, describe, of_pair, opened_run
from app.report.sections import collect
from app.report.summary import comparable, strongest
from app.resources import Opened
from app.run_kinds import BEHAVIOUR, MAPPED, PATCHES, Kind
from app.selection import Selection, update
from engine.condition import Condition
from engine.errors import PatchbayError
from engine.experiments.behaviour import Behaviour

MOST = 4
"""Runs of one kind that are shown in full."""


def section(kind: Kind, opened: Opened, selection: Selection) -> Section:
    """The newest runs of a kind, each with the panels that its page shows."""
    found = of_pair(opened, selection, kind.jobs)
    if not found:
        return empty(kind, selection)
    blocks = [block for run in found[:MOST] for block in one(kind, opened, selection, run)]
    return Section(kind.name, kind.title, kind.intro, (*blocks, *_older(len(found) - MOST)))


def empty(kind: Kind, selection: Selection) -> Section:
    """The chapter of a kind that was not run."""
    missing = f"No run of this kind is stored for {selection.a} and {selection.b}."
    return Section(kind.name, kind.title, kind.intro, missing=missing)


def _older(count: int) -> tuple[Text, ...]:
    said = f"{count} more of this kind: see the list of live runs under Provenance."
    return (Text(said),) if count > 0 else ()


def one(kind: Kind, opened: Opened, selection: Selection, run: Asked) -> Iterator[Block]:
    """One stored run: what it was, its panels, its notes."""
    condition, summary = run
    yield Text(f"Run {summary['run_id']}, {summary['created'][:16].replace('T', ' ')}.", describe(condition))
    try:
        result = opened_run(opened, summary["run_id"])
        reason = kind.nothing(result)
        seen = update(selection, opened.facts, **kind.selection_of(condition, selection))
        panels = kind.panels(opened, result, seen)
    except PatchbayError as error:
        yield Text(str(error))
        return
    if reason is not None:
        yield Text(f"{reason[0]}. {reason[1]}")
    yield from panels
    for note in result.summary.get("notes", []):
        yield Text(str(note))


def transport_maps(opened: Opened, selection: Selection) -> Section:
    """The map at every place where that was computed, and in depth where it saves most."""
    title = "Transport maps"
    intro = "Can one model's activations be predicted from the other's, on prompts that the map has not seen?"
    try:
        at = transport.effective(opened, strongest(opened, selection))
        known = transport_table.known(opened, tq.Place.of(at), tq.spec_of(at))
    except PatchbayError as error:
        return Section("transport", title, intro, missing=str(error))
    makers: list[Callable[[], Panel | None]] = [partial(make, opened, at) for make in transport.PANELS]
    if known is not None:
        makers.insert(0, partial(transport.table_panel, opened, at, known))
    return Section("transport", title, intro, collect(makers))


def mapped(opened: Opened, selection: Selection) -> Section:
    """The grids of both directions, the ranking, and the runs in which the map saves most."""
    everything = of_pair(opened, selection, MAPPED.jobs)
    if not everything:
        return empty(MAPPED, selection)
    runs = comparable(everything, selection)
    settings = update(selection, opened.facts, **patch_table.selection_of(runs[0][0], selection))
    like = dataclasses.replace(settings, a=selection.a, b=selection.b, target=selection.target)
    makers = [
        partial(patch_table.grid_panel, runs, dataclasses.replace(like, target=side), opened.path)
        for side in ("ba" if like.target == "b" else "ab")
    ]
    makers.append(partial(patch_table.ranking_panel, everything, opened.path))
    blocks = list(collect(makers))
    best = patch_table.ranked(patch_table.table(runs))["run_id"].to_list() or [runs[0][1]["run_id"]]
    by_id = {summary["run_id"]: (condition, summary) for condition, summary in runs}
    for run_id in best[:2]:
        blocks += one(MAPPED, opened, selection, by_id[run_id])
    drill = patch_drill.drill_table(opened_run(opened, best[0]).table, "mapped").head(8)
    caption = f"{describe(by_id[best[0]][0])}, at the best α; the most moved first."
    blocks.append(Table("drill", "Prompt by prompt", drill, caption))
    return Section(MAPPED.name, MAPPED.title, MAPPED.intro, (*blocks, *_older(len(everything) - 2)))


def patches(opened: Opened, selection: Selection) -> Section:
    """Patches without a map: what was run, effect over blocks, and the strongest run of each series."""
    found = of_pair(opened, selection, PATCHES.jobs)
    if not found:
        return empty(PATCHES, selection)
    rows = [_line(condition, summary) for condition, summary in found]
    said = "Mean KL(patched ‖ unpatched) of the next token, in nats, at the α nearest to 1; its interval."
    blocks: list[Block] = [Table("patches", f"{len(found)} runs", pl.DataFrame(rows), said)]
    series = _series(found)
    for conditions in series[:MOST]:
        blocks += collect(_series_makers(opened, conditions, found))
    more = len(series) - MOST
    blocks += [Text(f"{more} more series are in the table of runs above.")] if more > 0 else []
    return Section(PATCHES.name, PATCHES.title, PATCHES.intro, tuple(blocks))


def _line(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    row = _near(summary, 1.0)
    numbers = {name: row[name] for name in ("alpha", "kl", "low", "high", "n")}
    return {"run": summary["run_id"], "experiment": describe(condition), **numbers}


def _series(found: Sequence[Asked]) -> list[list[Asked]]:
    """Runs that differ by nothing but the block, the longest series first."""
    groups: dict[str, list[Asked]] = {}
    for condition, summary in found:
        key = json.dumps({k: v for k, v in condition.items() if k != "layer"}, sort_keys=True)
        groups.setdefault(key, []).append((condition, summary))
    return sorted(groups.values(), key=len, reverse=True)


def _series_makers(
    opened: Opened, group: Sequence[Asked], found: Sequence[Asked]
) -> list[Callable[[], Panel | None]]:
    alpha = 1.0
    condition, summary = max(group, key=lambda run: float(_near(run[1], alpha)["kl"]))
    asked = Condition.from_json(condition)
    code, profile = patch_view.code(opened.path, asked), patch_view.profile(found, asked, alpha)
    run = opened_run(opened, summary["run_id"])
    return [
        partial(patch_view.layer_panel, profile, asked, alpha, code),
        partial(patch_view.histogram_panel, run, alpha, code),
        partial(patch_view.alpha_panel, run, alpha, code),
    ]


def _near(summary: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """The summary row of the amplitude nearest to `alpha`."""
    return patch_view.point(JobResult({}, dict(summary), {}), alpha)


def behaviour(opened: Opened, selection: Selection) -> Section:
    """Every figure of behaviour that was measured: both models and stored interventions side by side."""
    found = of_pair(opened, selection, BEHAVIOUR.jobs)
    if not found:
        return empty(BEHAVIOUR, selection)
    blocks: list[Block] = []
    for group in _alike(found, selection):
        runs = {
            name: opened_run(opened, summary["run_id"])
            for name, (_, summary) in zip(behaviour_view.named(group[0]), group[1], strict=True)
        }
        first = group[0][0]
        blocks.append(Text("", f"Split {first.split}, {first.where.describe()}: {', '.join(runs)}"))
        names = dict.fromkeys(name for run in runs.values() for name in run.summary["figures"])
        for name in names:
            seen = dataclasses.replace(selection, measure=name)
            blocks += behaviour_view.panels(opened, runs, seen)
    return Section(BEHAVIOUR.name, BEHAVIOUR.title, BEHAVIOUR.intro, tuple(blocks))


def _alike(found: Sequence[Asked], selection: Selection) -> list[tuple[list[Behaviour], list[Asked]]]:
    """Runs that differ by who answers alone: model A, model B, interventions, oldest first."""
    groups: dict[str, list[tuple[Behaviour, Asked]]] = {}
    for run in reversed(found):
        one_run = Behaviour.from_json(run[0])
        same = {k: v for k, v in one_run.to_json().items() if k not in ("model", "intervention")}
        same["shared_with"] = one_run.shared_with is not None
        key = json.dumps(same, sort_keys=True)
        groups.setdefault(key, []).append((one_run, run))
    ordered = []
    for group in groups.values():
        group.sort(key=lambda pair: (pair[0].intervention is not None, pair[0].model != selection.a))
        ordered.append(([b for b, _ in group], [run for _, run in group]))
    return ordered
