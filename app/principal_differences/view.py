"""Controls of principal differences, and what stands below the panels: prompts in context, and steering."""

from __future__ import annotations

import polars as pl
import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.principal_differences import panels, tables
from app.principal_differences.fields import SHOWN

__all__ = ["settings", "show"]

ABOUT = {"mean": "their mean taken off", "zero": "as they are"}
ABOUT_HELP = (
    "Mean taken off: how prompts differ in what the change does to them; the mean difference is a direction "
    "of its own, which the Difference lens reads. As they are: the mean counts, too; these directions are "
    "the ones that Steering knows."
)


def settings(_opened: Opened) -> None:
    """Site, place and component; behind "More" what is taken off and who reads it."""
    controls.across(
        lambda: controls.choose("site", "Site", only=panels.SITES),
        lambda: controls.choose("position", "Token position"),
        lambda: controls.slide("layer", "Block ℓ"),
    )
    with controls.row():
        controls.steps("component", "Component", range(1, SHOWN + 1))
        controls.filter_controls(split=None)
        with controls.more():
            controls.switch("about", "Differences", ABOUT, help=ABOUT_HELP)
            controls.switch("through", "Tokens through the unembedding of", {"a": "model A", "b": "model B"})
            controls.slide("compared_every", "Compare each n-th block, n")


def show(opened: Opened, selection: Selection) -> None:
    """Everything about the selected place."""
    panels.at_place(opened, selection, components.progress)
    for number, make in enumerate(panels.makers(opened, selection)):
        with components.guard(f"principal differences: panel {number}"):
            components.show_all(opened, [make()])
    chosen = panels.leading(opened, selection)
    if chosen:
        with components.guard("principal differences: context"):
            _context(opened, selection, chosen)
            _steer(opened, selection, chosen)


def _context(opened: Opened, selection: Selection, chosen: int) -> None:
    asked = panels.place(opened, selection)
    table = tables.prompts(opened.store, **asked, component=chosen, ends=panels.ENDS)
    if table["context"].null_count() == table.height:
        return
    shown = table.select(
        "id", pl.col("score").round(2), pl.col("context").str.replace_all("\n", "⏎"), "split"
    )
    with st.container(border=True, key="panel-principal-context"):
        screen.markdown(f"#### The token at the position, at both ends of component {chosen:d}")
        screen.dataframe(shown, hide_index=True, width="stretch", height=360)


def _steer(opened: Opened, selection: Selection, chosen: int) -> None:
    """The leading direction that Steering knows, which isn't centred, nearest to the component."""
    number, cosine = tables.steered(opened.store, **panels.place(opened, selection), component=chosen)
    if number and selection.position in opened.facts.tokens and opened.can_run:
        at = panels.at_place(opened, selection)["layer"]
        place = {"site": panels.scanned(selection)["site"], "layer": at, "target": "a"}
        params = controls.link(part="steering", contrast=f"leading:{number}", **place)
        text = f"Steer {selection.a} along leading direction {number}"
        components.page_link("rank", plain(f"{text}: cosine {cosine:.2f} with component {chosen}"), params)
