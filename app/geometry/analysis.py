"""Z geometry as an analysis."""

from __future__ import annotations

import dataclasses
from functools import partial

import streamlit as st

from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter, Make
from app.frame.blocks import Block, Text
from app.frame.call import quiet
from app.frame.chapters import collect, plain
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import separation as geometry_separation
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry

TITLE = "Z geometry"


def _none(opened: Opened) -> tuple[str, str] | None:
    return None if geometry.available(opened) else geometry.WHY_EMPTY


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why there is nothing: no position of one row a prompt, or no head kernels."""
    return components.no_position(opened) or _none(opened)


def settings(opened: Opened) -> None:
    """Rank and blocks, the model, and which prompts are compared."""
    compare = geometry.comparable(opened)
    controls.across(
        lambda: controls.steps("k", "Rank k of Z", geometry_queries.ranks(opened.store)),
        lambda: controls.slide("layer", "Block ℓ"),
        lambda: controls.slide("ref", "Reference block"),
    )
    with controls.row():
        controls.switch("model", "Model", geometry.model_names(controls.current()))
        if compare:
            controls.switch("layers", "Prompts at", geometry.LAYERS)
            controls.filter_controls(spoken=False)
        with controls.more():
            controls.switch("joined", "Heads joined", geometry.JOINED)
            if compare:
                controls.choose("position", "Token, beside the mean", only=geometry.tokens(opened))
                controls.choose("site", "Stream", only=geometry.sites(opened))


def show(opened: Opened, selection: Selection) -> None:
    """Panels of each pooling side by side, where prompts come in two languages; then those of weights."""
    chosen = geometry.effective(opened, selection)
    geometry.prepare(opened, chosen, components.progress)
    if geometry.comparable(opened):
        poolings = geometry.poolings(opened, chosen)
        for side, pooling in zip(st.columns(len(poolings)), poolings, strict=True):
            for make in geometry_separation.makers(chosen):
                with side, components.guard(f"geometry: {make.__name__}"):
                    components.show(opened, make(opened, chosen, pooling))
    else:
        components.empty(*geometry.WHY_ONE_LANGUAGE)
    for draw in geometry.WEIGHTS:
        with components.guard(f"geometry: {draw.__name__}"):
            panel = draw(opened, chosen)
            if panel is not None:
                components.show(opened, panel)
            elif draw is geometry.gates_panel:
                components.empty(*geometry.WHY_NO_GATE)


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """What heads read, and whether it holds what two languages share, at the selected block."""
    if (why := _none(opened)) is not None:
        return plain(why)
    chosen = dataclasses.replace(geometry.effective(opened, selection), layers="one")
    makers: list[Make] = []
    blocks: list[Block] = []
    if geometry.comparable(opened):
        for pooling in geometry.poolings(opened, chosen):
            makers += [partial(m, opened, chosen, pooling) for m in geometry_separation.makers(chosen)]
    else:
        blocks.append(Text(plain(geometry.WHY_ONE_LANGUAGE)))
    makers += [partial(make, opened, chosen) for make in geometry.WEIGHTS]
    geometry.prepare(opened, chosen, quiet)
    return (*blocks, *collect(makers))


GEOMETRY = Analysis(
    "geometry",
    TITLE,
    "Z is what a block's heads read from the stream. Does it hold what two languages share about a problem?",
    section="Languages",
    icon="deployed_code",
    answers="what do heads read, where do blocks part, and do two languages differ there?",
    null="random subspaces, permuted pairs, closed forms",
    chapters=(
        Chapter(
            "geometry",
            TITLE,
            "Z is what a block's heads read from the stream. Does it hold what two languages share?",
            chapter,
        ),
    ),
    empty=empty,
    controls=settings,
    body=show,
)
