"""A page from what its analysis declares; one that needs more brings a page of its own."""

from __future__ import annotations

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, Kind, caution
from app.frame.opened import Opened
from app.frame.selection import Selection


def show(analysis: Analysis) -> None:
    """Heading, why there is nothing or else controls, the runs that are asked for, and panels."""
    opened = components.begin(analysis.title, analysis.question, pair=analysis.pair)
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
        return
    for panel in kind.panels(opened, found, chosen):
        components.show(opened, panel)
    kind.below(found, chosen)
    for note in found.summary.get("notes", []):
        screen.caption(plain(note))
