"""The chapter of subspace scores: what a stored run says of each weight change of the pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.frame.analysis import Blocks, Kind
from app.frame.blocks import Block, Table, Text
from app.frame.chapters import heading, older, plain
from app.frame.opened import Opened
from app.frame.selection import Selection, update
from app.frame.stored import Asked, opened_run
from app.subspaces import panels as subspaces_panels
from app.subspaces import tables as q
from app.subspaces import view as subspaces_view
from app.subspaces.panels import Shown
from engine.errors import PatchbayError


def shown(_kind: Kind, opened: Opened, selection: Selection, found: Sequence[Asked]) -> Blocks:
    """The newest run with its conclusion, panels, tables and definitions."""
    return (*_one(opened, selection, found[0]), *older(len(found) - 1))


def empty(opened: Opened, _selection: Selection) -> str:
    """Why there is no run: whether there could be one."""
    can = subspaces_view.can_score(opened)
    return "No run of this kind is stored." if can else plain(subspaces_view.NOTHING)


def _one(opened: Opened, selection: Selection, run: Asked) -> Iterator[Block]:
    condition, summary = run
    yield heading(run)
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
