"""The card of a tour's stop above its page, and the way into the tour."""

from __future__ import annotations

import streamlit as st

from app import screen
from app.frame import controls
from app.frame import parts as components
from app.frame.opened import Opened
from app.tour.demo import STOPS, TourFields, offered


def invite(opened: Opened) -> None:
    """The way into the tour, where a store has one."""
    if offered(opened):
        components.page_link(STOPS[0].page, "Take the tour: find the layer that was changed", _link(1))


def show(opened: Opened, page: str) -> None:
    """The stop that a reader is at, and the way on; nothing outside of the tour.

    Args:
        page: the address of the page that is shown.
    """
    at = TourFields.of(controls.current()).tour
    if not at or not offered(opened):
        return
    stop = STOPS[at - 1]
    with st.container(border=True, key="tour"):
        screen.markdown(f"**{stop.title}** &ensp; Stop {at} of {len(STOPS)}. {stop.look}")
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            if page != stop.page:
                components.page_link(stop.page, "To this stop", _link(at))
            if at > 1:
                components.page_link(STOPS[at - 2].page, "Back", _link(at - 1))
            if at < len(STOPS):
                components.page_link(STOPS[at].page, "Next stop", _link(at + 1))
            screen.button("End the tour", type="tertiary", key="tour-end", on_click=_end)


def _link(number: int) -> dict[str, str]:
    return controls.link(**STOPS[number - 1].selection, tour=number)


def _end() -> None:
    controls.change(tour=0)
