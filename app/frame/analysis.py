"""What an analysis declares of itself, once: its page, its runs, its chapters of the report, its terms.

Every `app/<analysis>/analysis.py` makes one `Analysis`; `app/analyses.py` is the list of them. Menu, kinds of
runs, report, what was not run, durations and the table of the README follow from that list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from app.frame import related
from app.frame.blocks import Block
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Fields, Selection
from app.live.jobs import JobResult
from engine.lab.experiment import Experiment

Blocks = Sequence[Block] | str
"""What a chapter shows, or why it has nothing to show."""
Make = Callable[[], Panel | None]
Headline = tuple[Panel, Selection] | None
"""A finding, and the selection under which its page shows it."""
Advance = Callable[[int, int, str], None]
"""Called with (done, of how many, what is being done)."""


@dataclass(frozen=True)
class Term:
    """One line of the report's definitions."""

    term: str
    meaning: str
    formula: str = ""
    source: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of live experiment.

    Args:
        name, title, question: short name, name for people, and the question it answers.
        jobs: values of an experiment's `job` that belong to it, with the seconds that one takes on the demo
            as its page first asks for it, models not loaded: process CPU time of one thread on a 2-core Xeon
            virtual machine; None where that was not measured.
        page: name of the page that runs it.
        selection_of: changes to a selection under which that page asks a stored condition again.
        panels: of one stored result.
        nothing: why a result has no panels (title, text), or None.
        finding: the title of a result's first panel, where that can be told without making panels.
        each: of one stored result, a row per prompt (`engine.lab.beside`), by which runs are compared.
        asked, not_run, below: for `app.frame.page.show`: the experiment that a selection asks for, title and
            text before it was run, and what stands below its panels.
    """

    name: str
    title: str
    question: str
    jobs: Mapping[str, float | None]
    page: str
    selection_of: Callable[[Mapping[str, object], Selection], Mapping[str, object]]
    panels: Callable[[Opened, JobResult, Selection], Sequence[Panel]]
    nothing: Callable[[JobResult], tuple[str, str] | None] = lambda _result: None
    finding: Callable[[JobResult], str] | None = None
    each: Callable[[JobResult], pl.DataFrame] | None = None
    asked: Callable[[Opened, Selection], Experiment] | None = None
    not_run: Callable[[Any], tuple[str, str]] = lambda wanted: ("Not run yet", wanted.describe())
    below: Callable[[JobResult, Selection], None] = lambda _result, _selection: None


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report.

    Args:
        name: short, unique: the anchor. title, question: its heading and what it asks.
        blocks: what it shows, or why there is nothing; a PatchbayError is such a reason too.
        part: whether it stands before all others, among them in the order of the list, or after them.
        deepest: whether it is made where the effects of patches are largest, instead of at the selection.
    """

    name: str
    title: str
    question: str
    blocks: Callable[[Opened, Selection], Blocks]
    part: str = "body"
    deepest: bool = False


@dataclass(frozen=True)
class Planned:
    """Experiments that a full study of a pair has.

    Args:
        experiments: none where the store has not what they need; a PatchbayError says the same.
        alike: sizes that both models must share for the source's activations to fit into the target as
            they are: keys of a model's `info`.
        deepest: as in `Chapter`.
    """

    name: str
    title: str
    experiments: Callable[[Opened, Selection], Sequence[Experiment]]
    alike: tuple[str, ...] = ()
    deepest: bool = False


@dataclass(frozen=True)
class Fitted:
    """What `precompute.py report --fit` computes first.

    Args:
        missing: what of it is not there, in words; "" when all is.
        fit: computes what is missing.
    """

    title: str
    missing: Callable[[Opened, Selection], str]
    fit: Callable[[Opened, Selection, Advance], None]


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Args:
        name: folder, page and address.
        title, question: heading of its page and what stands below it.
        section, icon: its place in the menu and a Material symbol; no section: it has no page of its own.
        pair: whether its page is about models A and B. fields: settings of its own in links.
        answers, null: its line in the table of the README.
        kinds: of live experiments. planned: what a full study of a pair runs of them.
        chapters: of the report. terms: that the report defines for it.
        fitted: what can be computed ahead of a report.
        deepest: the selection at the place where its effects are largest.
        headline: what it says first of a pair, from the store or a stored run, and the selection of its page
            that shows it; None where there is nothing.
        tuned: the two models that its numbers presuppose to be a base and its fine-tune, where they do.
        blocking: whether failed self-checks stop its page.
        empty, controls, body, panels: for `app.frame.page.show`: why a store has nothing for it (title,
            text), its controls, what is neither a run of one kind nor a panel, and panels that need no run,
            or what makes them.
    """

    name: str
    title: str
    question: str = ""
    section: str = ""
    icon: str = ""
    pair: bool = True
    blocking: bool = True
    fields: type[Fields] | None = None
    answers: str = ""
    null: str = "–"
    kinds: tuple[Kind, ...] = ()
    planned: tuple[Planned, ...] = ()
    chapters: tuple[Chapter, ...] = ()
    terms: tuple[Term, ...] = ()
    fitted: Fitted | None = None
    deepest: Callable[[Opened, Selection], Selection] | None = None
    headline: Callable[[Opened, Selection], Headline] = lambda _opened, _selection: None
    tuned: Callable[[Opened, Selection], tuple[str, str]] | None = None
    empty: Callable[[Opened], tuple[str, str] | None] = lambda _opened: None
    controls: Callable[[Opened], None] = lambda _opened: None
    body: Callable[[Opened, Selection], None] = lambda _opened, _selection: None
    panels: Callable[[Opened, Selection], Iterable[Panel | Make]] = lambda _opened, _selection: ()


def pair_of(_opened: Opened, selection: Selection) -> tuple[str, str]:
    """The selected pair, for `Analysis.tuned`."""
    return selection.a, selection.b


def caution(analysis: Analysis, opened: Opened, selection: Selection) -> str:
    """That a pair isn't shown to be a base and its fine-tune, where an analysis presupposes that; else ""."""
    return "" if analysis.tuned is None else related.notice(opened, *analysis.tuned(opened, selection))


@dataclass
class _Known:
    analyses: tuple[Analysis, ...] = field(default=())


_KNOWN = _Known()


def install(analyses: Sequence[Analysis]) -> None:
    """Makes the list known to the frame, which imports no analysis."""
    _KNOWN.analyses = tuple(analyses)


def known() -> tuple[Analysis, ...]:
    """The list."""
    return _KNOWN.analyses


def usual_seconds() -> dict[str, float]:
    """Seconds of one experiment of each job on the demo, where that was measured."""
    kinds = (kind for one in _KNOWN.analyses for kind in one.kinds)
    return {job: took for kind in kinds for job, took in kind.jobs.items() if took is not None}
