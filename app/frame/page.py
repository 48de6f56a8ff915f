"""A page from what its analysis declares; what else it shows is its `body`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, Kind, caution
from app.frame.opened import Opened
from app.frame.selection import Selection, update
from app.frame.stored import describe, of_pair
from engine.errors import PatchbayError
from engine.lab.experiment import experiment_from_json

OTHERS = 5
"""Stored runs under other settings that a page without a result of its own offers."""


def show(analysis: Analysis) -> None:
    """Heading, why there is nothing or else controls, the runs that are asked for, body and panels."""
    opened = components.begin(
        analysis.title, analysis.question, blocking=analysis.blocking, pair=analysis.pair
    )
    why = analysis.empty(opened)
    if why is not None:
        components.empty(*why)
        st.stop()
    analysis.controls(opened)
    chosen = controls.current()
    warn(analysis, opened, chosen)
    for kind in analysis.kinds:
        with components.guard(f"{analysis.name}: {kind.name}"):
            live(opened, kind, chosen)
    with components.guard(f"{analysis.name}: panels"):
        analysis.body(opened, chosen)
        for number, made in enumerate(analysis.panels(opened, chosen)):
            with components.guard(f"{analysis.name}: panel {number}"):
                panel = made() if callable(made) else made
                if panel is not None:
                    components.show(opened, panel)


def warn(analysis: Analysis, opened: Opened, chosen: Selection) -> None:
    """Says that the pair isn't shown to be a base and its fine-tune, where a page presupposes it."""
    said = caution(analysis, opened, chosen)
    if said:
        screen.warning(plain(said), icon=":material/link_off:")


def live(opened: Opened, kind: Kind, chosen: Selection) -> None:
    """The run of a kind that a selection asks for: its button, progress, stored result and notes."""
    if kind.asked is None:
        return
    wanted = kind.asked(opened, chosen)
    found = live_view.stored(opened, wanted)
    if found is None:
        live_view.rejoin(opened, wanted)
    live_view.run_button(opened, [wanted], done=found is not None)
    live_view.watch()
    if found is None:
        if opened.can_run and not live_view.active():
            components.empty(*kind.not_run(wanted))
        offer(opened, kind, chosen)
        return
    components.show_all(opened, kind.panels(opened, found, chosen))
    kind.below(found, chosen)
    live_view.notes(found)


def leads_back(opened: Opened, kind: Kind, condition: Mapping[str, Any], seen: Selection) -> bool:
    """Whether the run's page asks it again under a selection, as far as the page is known to ask one."""
    if kind.asked is None:
        return True
    try:
        return kind.asked(opened, seen) == experiment_from_json(condition)
    except PatchbayError:
        return False


def offer(opened: Opened, kind: Kind, chosen: Selection) -> None:
    """The pair's newest stored runs of a kind: their settings at a click, or the page that shows any run."""
    found = of_pair(opened, chosen, kind.jobs)[:OTHERS]
    if found:
        screen.markdown("##### Run before under other settings")
    for condition, summary in found:
        made = str(summary["created"])[:16].replace("T", " ")
        words = plain(f"{describe(condition)} ({made})")
        try:
            changes = kind.selection_of(condition, chosen)
            back = leads_back(opened, kind, condition, update(chosen, opened.facts, **changes))
        except (KeyError, ValueError, PatchbayError):  # of an earlier version: the page Runs says so
            back = False
        if not back:
            components.page_link("runs", words, controls.link(run=summary["run_id"]))
            continue
        screen.button(
            words,
            icon=":material/history:",
            type="tertiary",
            key=f"other-{summary['run_id']}",
            on_click=partial(controls.change, **changes),
        )
