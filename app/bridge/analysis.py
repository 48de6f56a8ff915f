"""The bridge as an analysis."""

from __future__ import annotations

import streamlit as st

from app import screen
from app.bridge import panels as bridge
from app.bridge import spaces, tables
from app.bridge.fields import BridgeFields
from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter
from app.frame.blocks import Text
from app.frame.call import quiet
from app.frame.chapters import plain
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why there is nothing; None where problems come in two languages and heads are known."""
    return None if bridge.available(opened) else bridge.WHY_EMPTY


def settings(opened: Opened) -> None:
    """Rank, block, position and stream; the model, the way, the fit and its null."""
    controls.across(
        lambda: controls.steps("k", "Rank k of Z", geometry_queries.ranks(opened.store)),
        lambda: controls.slide("layer", "Block ℓ"),
        lambda: controls.choose("position", "Token position", only=opened.facts.positions),
    )
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    with left:
        controls.choose("site", "Stream", only=geometry.sites(opened))
    with right:
        controls.filter_controls(spoken=False)
    with controls.row():
        controls.switch("model", "Model", geometry.model_names(controls.current()))
        controls.switch("way", "From → to", bridge.ways(opened))
        controls.switch("joined", "Heads joined", geometry.JOINED)
        controls.switch("fit", "Fit", bridge.FITS)
        if tables.several(opened.store, controls.current().category):
            controls.switch("pairing", "Null pairs with", bridge.PAIRINGS, only=tuple(bridge.PAIRINGS))
        with screen.popover("More of the bridge", icon=":material/tune:", key="bridge-rare"):
            controls.switch("intercept", "Coordinates", bridge.INTERCEPTS, help=bridge.INTERCEPT_HELP)
            controls.switch("space", "Subspace", bridge.SPACES, help=bridge.SPACE_HELP)
        controls.switch("parts", "Profile over blocks", {"shown": "shown", "hidden": "hidden"})


def panels(opened: Opened, selection: Selection) -> list[Panel]:
    """Panels of the selection as the page can show it, below what to keep in mind with them."""
    chosen = spaces.effective(opened, selection)
    spaces.prepare(opened, chosen, components.progress)
    hint = spaces.hint(opened, chosen)
    if hint is not None:
        screen.info(hint, icon=":material/lightbulb:")
    note = bridge.warning(opened, chosen)
    if note is not None:
        screen.warning(note, icon=":material/warning:")
    return bridge.panels(opened, chosen)


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """Whether one language's coordinates in Z are a linear map of the other's."""
    if (why := empty(opened)) is not None:
        return plain(why)
    chosen = spaces.effective(opened, selection)
    spaces.prepare(opened, chosen, quiet)
    note = bridge.warning(opened, chosen)
    return (*((Text(note),) if note else ()), *bridge.panels(opened, chosen))


BRIDGE = Analysis(
    "bridge",
    "Bridge",
    "Does a linear map lead from one language's activations in Z to the other's, problem by problem?",
    section="Languages",
    icon="merge",
    answers="is one language's Z a linear map of the other's?",
    null="leave-one-out; permuted pairs",
    chapters=(
        Chapter(
            "bridge",
            "Bridge",
            "Does a linear map lead from one language's activations in Z to the other's?",
            chapter,
        ),
    ),
    empty=empty,
    controls=settings,
    panels=panels,
    fields=BridgeFields,
)
