"""The chapter of subspace scores: what a stored run says of each weight change of the pair."""

from __future__ import annotations

from collections.abc import Iterator

from app import subspaces_panels, subspaces_view
from app import subspaces_queries as q
from app.report.blocks import Block, Section, Table, Text
from app.report.runs import Asked, describe, of_pair, opened_run
from app.report.sections import plain
from app.resources import Opened
from app.run_kinds import SUBSPACES
from app.selection import Selection, update
from app.subspaces_panels import Shown
from engine.errors import PatchbayError

MOST = 1
"""Runs that are shown in full."""


def chapter(opened: Opened, selection: Selection) -> Section:
    """The newest run with its conclusion, panels, tables and definitions."""
    kind = SUBSPACES
    found = of_pair(opened, selection, kind.jobs)
    if not found:
        scored = subspaces_view.can_score(opened)
        missing = "No run of this kind is stored." if scored else plain(subspaces_view.NOTHING)
        return Section(kind.name, kind.title, kind.intro, missing=missing)
    blocks = [block for run in found[:MOST] for block in _one(opened, selection, run)]
    if len(found) > MOST:
        more = f"{len(found) - MOST} more of this kind: see the list of live runs under Provenance."
        blocks.append(Text(more))
    return Section(kind.name, kind.title, kind.intro, tuple(blocks))


def _one(opened: Opened, selection: Selection, run: Asked) -> Iterator[Block]:
    condition, summary = run
    yield Text(f"Run {summary['run_id']}, {summary['created'][:16].replace('T', ' ')}.", describe(condition))
    try:
        result = opened_run(opened, summary["run_id"])
        seen = update(selection, opened.facts, **subspaces_view.selection_of(condition, selection))
        shown = subspaces_view.shown_of(opened, result, seen)
    except PatchbayError as error:
        yield Text(str(error))
        return
    yield from _conclusion(shown)
    yield from subspaces_panels.run_panels(opened, shown)
    yield from _tables(shown)
    for note in result.summary["notes"]:
        yield Text(str(note))


def _conclusion(shown: Shown) -> Iterator[Text]:
    """The conclusion as paragraphs without Markdown; the last one what is fragile."""
    said, _, fragile = shown.found.text.replace("`", "").partition("\nFragile:\n")
    for number, paragraph in enumerate(filter(None, said.split("\n\n"))):
        yield Text(paragraph.strip(), "Conclusion" if number == 0 else "")
    if fragile:
        yield Text("Fragile: " + " ".join(line[2:] for line in fragile.strip().split("\n")))


def _tables(shown: Shown) -> Iterator[Table]:
    summary, _ = q.ranking_shown(q.ranked(shown.scores, shown.changes), shown.k, len(shown.scores.averaged))
    yield Table("subspace-summary", "All candidates", summary, subspaces_panels.method(shown) + ".")
    percent = "Of the most that a subspace of the candidate's rank can have; two ceilings are not exact."
    yield Table("subspace-percent", "Percent of ceilings", q.percent(shown.scores), percent, folded=True)
    lost = q.left_out(shown.scores)
    if lost.height:
        yield Table("subspace-left-out", "Left out, and why", lost)
    yield Table("subspace-definitions", "Candidates", q.definitions(shown.scores), folded=True)
