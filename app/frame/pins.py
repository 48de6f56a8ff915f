"""Pinned curves of a session: what a panel drew stays, broken, while the selection moves on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import streamlit as st

from app import screen
from app.charts.palette import Palette
from app.charts.pinned import STROKES, Pin, Pinned, by_stroke, fits, pin
from app.charts.template import Chart, Spec
from app.escape import plain
from app.frame.opened import Opened
from app.frame.panel import Panel

_PINS = "pins"


def pinned(opened: Opened, panel: Panel) -> tuple[Pin, ...]:
    """The pins of a panel, of the store as it is open now."""
    found: tuple[Pin, ...] = st.session_state.get(_PINS, {}).get((opened.key, panel.name), ())
    return found


def added(opened: Opened, panel: Panel) -> Panel:
    """A panel with its pinned curves in the chart and in every picture of it."""
    pins = pinned(opened, panel)
    if not pins:
        return panel

    def draw(palette: Palette) -> Chart:
        return Pinned.over(panel.draw(palette), pins, palette.mark)

    return replace(panel, draw=draw)


def button(opened: Opened, panel: Panel, spec: Spec) -> None:
    """Pins what a chart with curves shows; the oldest pin gives way."""
    found = pin(spec, panel.heading)
    if found is None:
        return
    screen.button(
        "Pin",
        icon=":material/keep:",
        type="tertiary",
        key=f"pin-{panel.name}",
        help="Keeps these curves in the chart, broken, while you choose something else.",
        on_click=partial(_set, opened, panel, (*pinned(opened, panel), found)[-len(STROKES) :]),
    )


def listed(opened: Opened, panel: Panel, spec: Spec) -> None:
    """What is pinned in a panel, and whether its chart can show it; a click takes it out."""
    pins = pinned(opened, panel)
    for number, (stroke, one) in enumerate(by_stroke(pins).items()):
        how = stroke if fits(one, spec) else "Pinned, of other axes"
        screen.button(
            f"{how}: {plain(one.words)}",
            icon=":material/keep_off:",
            type="tertiary",
            key=f"unpin-{panel.name}-{number}",
            on_click=partial(_set, opened, panel, tuple(p for p in pins if p is not one)),
        )


def _set(opened: Opened, panel: Panel, pins: tuple[Pin, ...]) -> None:
    held = st.session_state.get(_PINS, {})
    st.session_state[_PINS] = {**held, (opened.key, panel.name): pins}
