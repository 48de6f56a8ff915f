"""What is found about a pair, an analysis a finding, and what has not been run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import streamlit as st

from app import screen
from app.charts.palette import Palette
from app.charts.template import Spec
from app.escape import plain
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, known
from app.frame.opened import Opened, report
from app.frame.panel import Panel
from app.frame.selection import Selection, to_params
from engine.errors import PatchbayError
from engine.lab.experiment import Experiment

FIRST = ("weights", "similarity", "behaviour", "patching", "heads", "weight_steering")
"""The order in which a fine-tune is looked at: what changed, where, what it does, what carries it."""
SHOWN = 6
"""Findings that are seen at once; the others are folded."""
SMALL = 150
"""Height of a small chart in pixels."""


@dataclass(frozen=True)
class Answer:
    """What an analysis says first of a pair: the panel, and the selection under which its page shows it."""

    analysis: Analysis
    panel: Panel
    selection: Selection


def findings(
    analyses: Sequence[Analysis], opened: Opened, selection: Selection, failed: list[str] | None = None
) -> Iterator[Answer]:
    """One finding of each analysis that has one, in the order of reading.

    An analysis that can't say anything of this store (a damaged run, a position it doesn't have) is left
    out here, and so is one that fails: its page says why. `failed` takes the names of those that do.
    """
    failed = [] if failed is None else failed
    first = sorted((one for one in analyses if one.name in FIRST), key=lambda one: FIRST.index(one.name))
    for one in (*first, *(one for one in analyses if one.name not in FIRST)):
        try:
            found = one.headline(opened, selection)
        except PatchbayError:
            continue
        except Exception as error:
            report(error, f"overview: {one.name}")
            failed.append(one.name)
            continue
        if found is not None:
            yield Answer(one, *found)


class _SomeFailedError(Exception):
    """Findings that aren't kept, as some analysis failed."""

    def __init__(self, found: tuple[Answer, ...]) -> None:
        super().__init__()
        self.found = found


def kept(opened: Opened, selection: Selection, runs: tuple[Any, ...]) -> tuple[Answer, ...]:
    """The findings of all analyses, made once for the stored runs that there are; again where one failed."""
    try:
        return _kept(opened, selection, runs)
    except _SomeFailedError as some:
        return some.found


@lru_cache(maxsize=8)
def _kept(opened: Opened, selection: Selection, _runs: tuple[Any, ...]) -> tuple[Answer, ...]:
    failed: list[str] = []
    found = tuple(findings(known(), opened, selection, failed))
    if failed:
        raise _SomeFailedError(found)
    return found


def small(panel: Panel, palette: Palette) -> Spec:
    """A panel's chart without legend, titles of its axes and names of points, low."""
    spec = panel.draw(palette).spec()
    spec["layer"] = [part for part in spec["layer"] if not _writes(part)]
    for part in spec["layer"]:
        for name, channel in part.get("encoding", {}).items():
            if name in ("x", "y"):
                channel["title"] = None
            elif isinstance(channel, dict) and "field" in channel:
                channel["legend"] = None
    return {**spec, "height": SMALL}


def _writes(part: Spec) -> bool:
    """Whether a layer is text."""
    mark = part.get("mark")
    return (mark.get("type") if isinstance(mark, dict) else mark) == "text"


def cards(opened: Opened, found: Sequence[Answer]) -> None:
    """Findings, two in a row."""
    for number, one in enumerate(found):
        if number % 2 == 0:
            columns = st.columns(2, gap="small")
        with columns[number % 2], components.guard(f"overview: {one.analysis.name}"):
            _card(opened, one)


def _card(opened: Opened, finding: Answer) -> None:
    """Which analysis, the finding in words, its chart, and the way to its page."""
    one, panel = finding.analysis, finding.panel
    with st.container(border=True, height="stretch", key=f"finding-{one.name}"):
        components.page_link(one.name, one.title, to_params(finding.selection, opened.facts))
        screen.markdown(f"**{plain(panel.heading)}**")
        spec = small(panel, components.colors())
        st.vega_lite_chart(spec=spec, width="stretch", key=f"small-{one.name}", alt=panel.title)
        if panel.more:
            screen.caption(plain(f"{panel.more}."))


def next_steps(opened: Opened, wanted: Sequence[tuple[str, Sequence[Experiment]]]) -> None:
    """What has not been run: all of it, or one group after the other, and the progress of what runs.

    Args:
        wanted: title and experiments of each group, without those that have a stored result.
    """
    if not wanted and not live_view.jobs():
        return
    screen.markdown("#### Not run yet")
    live_view.watch()
    every = [experiment for _, experiments in wanted for experiment in experiments]
    if every:
        live_view.run_button(opened, every, f"Run all {len(every)} experiments", key="run-all")
    if len(wanted) > 1 and not live_view.active():
        with screen.expander("One by one"):
            for number, (title, experiments) in enumerate(wanted):
                count = f", {len(experiments)} experiments" if len(experiments) > 1 else ""
                live_view.run_button(
                    opened, experiments, f"{title}{count}", key=f"run-next-{number}", kind="secondary"
                )
