"""Patching in the report: grids, ranking and the runs in which a map saves most; patches without a map."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from app.frame.analysis import Blocks, Kind
from app.frame.blocks import Block, Table, Text
from app.frame.chapters import MOST, collect, older, one
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, update
from app.frame.stored import Asked, describe, opened_run
from app.live.jobs import JobResult
from app.patching import drill as patch_drill
from app.patching import replacement as patch_view
from app.patching import table as patch_table
from app.patching.summary import comparable
from engine.patching.spec import Condition


def mapped(kind: Kind, opened: Opened, selection: Selection, found: Sequence[Asked]) -> Blocks:
    """The grids of both directions, the ranking, and the runs in which the map saves most."""
    runs = comparable(found, selection)
    settings = update(selection, opened.facts, **patch_table.selection_of(runs[0][0], selection))
    like = dataclasses.replace(settings, a=selection.a, b=selection.b, target=selection.target)
    makers = [
        partial(patch_table.grid_panel, runs, dataclasses.replace(like, target=side), opened.path)
        for side in ("ba" if like.target == "b" else "ab")
    ]
    makers.append(partial(patch_table.ranking_panel, found, opened.path))
    blocks = list(collect(makers))
    best = patch_table.ranked(patch_table.table(runs))["run_id"].to_list() or [runs[0][1]["run_id"]]
    by_id = {summary["run_id"]: (condition, summary) for condition, summary in runs}
    for run_id in best[:2]:
        blocks += one(kind, opened, selection, by_id[run_id])
    drill = patch_drill.drill_table(opened_run(opened, best[0]).table, "mapped").head(8)
    caption = f"{describe(by_id[best[0]][0])}, at the best α; the most moved first."
    blocks.append(Table("drill", "Prompt by prompt", drill, caption))
    return (*blocks, *older(len(found) - 2))


def patches(_kind: Kind, opened: Opened, _selection: Selection, found: Sequence[Asked]) -> Blocks:
    """Patches without a map: what was run, effect over blocks, and the strongest run of each series."""
    rows = [_line(condition, summary) for condition, summary in found]
    said = "Mean KL(patched ‖ unpatched) of the next token, in nats, at the α nearest to 1; its interval."
    blocks: list[Block] = [Table("patches", f"{len(found)} runs", pl.DataFrame(rows), said)]
    series = _series(found)
    for conditions in series[:MOST]:
        blocks += collect(_series_makers(opened, conditions, found))
    more = len(series) - MOST
    return [*blocks, *([Text(f"{more} more series are in the table of runs above.")] if more > 0 else [])]


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
