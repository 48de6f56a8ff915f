"""What chapters of a report have in common: panels that may fail, and the stored runs of a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from app.frame.analysis import Blocks, Chapter, Headline, Kind, Make
from app.frame.blocks import Block, Text
from app.frame.opened import Opened
from app.frame.selection import Selection, update
from app.frame.stored import Asked, describe, of_pair, opened_run
from engine.errors import PatchbayError

MOST = 4
"""Runs of one kind that are shown in full."""


def collect(makers: Iterable[Make]) -> tuple[Block, ...]:
    """The panels that can be made; one that cannot says why in its place."""
    found: list[Block] = []
    for make in makers:
        try:
            panel = make()
        except PatchbayError as error:
            found.append(Text(str(error)))
        else:
            found += [panel] if panel is not None else []
    return tuple(found)


def plain(why: tuple[str, str]) -> str:
    """A page's reason for being empty, as one sentence without Markdown."""
    return f"{why[0]}. {why[1]}".replace("`", "").replace("**", "")


Shown = Callable[[Kind, Opened, Selection, Sequence[Asked]], Blocks]
"""What a chapter shows of the stored runs of a kind, newest first; there is at least one."""


def newest(kind: Kind, opened: Opened, selection: Selection, found: Sequence[Asked]) -> Blocks:
    """The newest runs of a kind, each with the panels that its page shows."""
    blocks = [block for run in found[:MOST] for block in one(kind, opened, selection, run)]
    return (*blocks, *older(len(found) - MOST))


Order = Callable[[Sequence[Asked]], Sequence[Asked]]


def first_of(kind: Kind, order: Order = list, panel: int = 0) -> Callable[[Opened, Selection], Headline]:
    """What a kind says first: a panel of the first stored run of the pair that says something.

    Args:
        order: of the runs, which come newest first.
        panel: which of its panels.
    """

    def headline(opened: Opened, selection: Selection) -> Headline:
        for condition, summary in order(of_pair(opened, selection, kind.jobs))[:MOST]:
            try:
                result = opened_run(opened, summary["run_id"])
                seen = update(selection, opened.facts, **kind.selection_of(condition, selection))
                panels = [] if kind.nothing(result) else kind.panels(opened, result, seen)
            except PatchbayError:  # damaged, or of a model that is no longer there: its page says so
                continue
            if panels:
                return panels[panel], seen
        return None

    return headline


def no_run(_opened: Opened, selection: Selection) -> str:
    """Why the chapter of a kind that was not run is empty."""
    return f"No run of this kind is stored for {selection.a} and {selection.b}."


def of_kind(kind: Kind, shown: Shown = newest, empty: Callable[[Opened, Selection], str] = no_run) -> Chapter:
    """The chapter of a kind: its stored runs of the pair, or why there is none."""

    def blocks(opened: Opened, selection: Selection) -> Blocks:
        found = of_pair(opened, selection, kind.jobs)
        return shown(kind, opened, selection, found) if found else empty(opened, selection)

    return Chapter(kind.name, kind.title, kind.question, blocks)


def older(count: int) -> tuple[Text, ...]:
    """What is said of runs that are not shown."""
    said = f"{count} more of this kind: see the list of live runs under Provenance."
    return (Text(said),) if count > 0 else ()


def heading(run: Asked) -> Text:
    """Which stored run it is."""
    condition, summary = run
    return Text(f"Run {summary['run_id']}, {summary['created'][:16].replace('T', ' ')}.", describe(condition))


def one(kind: Kind, opened: Opened, selection: Selection, run: Asked) -> Iterator[Block]:
    """One stored run: what it was, its panels, its notes."""
    condition, summary = run
    yield heading(run)
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
