"""Computations behind the page of the bridge: coordinates once for each block, then a fit for each k.

Coordinates of both languages' activations in every offered Z of a block are kept, so that a move of k only
fits and permutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import streamlit as st

from app.ard.fields import ArdFields
from app.bridge import spaces
from app.bridge.fields import BridgeFields
from app.frame.opened import Opened
from app.frame.prompts import SEED
from app.frame.selection import Selection, changed
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.residual_updates import tables as update_queries
from engine.bridge import numbers as analysis
from engine.bridge.numbers import Bridge, Profile, fit_bridge, profile

DRAWS, PROFILE_DRAWS = 199, 99
KEPT_BLOCKS = 96
MOST = 1000
"""Most problems that a bridge is fitted on: a page's work and memory stay what 1000 need."""

Coordinates = dict[int, tuple[np.ndarray, np.ndarray]]
Progress = Callable[[str], Callable[[int, int], None]]


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a site, a position, a k, a block and a null that this page can show."""
    ks, sites, positions = geometry_queries.ranks(opened), geometry.sites(opened), opened.facts.positions
    layers = spaces.blocks(opened, selection) or opened.store.layers(geometry.model_of(selection))
    return changed(
        selection,
        site=selection.site if selection.site in sites else sites[0],
        position=selection.position if selection.position in positions else positions[0],
        k=min(ks, key=lambda k: abs(k - selection.k)),
        layer=min(layers, key=lambda block: abs(block - selection.layer)),
    )


def spoken(opened: Opened, selection: Selection) -> tuple[str, str]:
    """(language the map starts from, language it leads to)."""
    pair = geometry_queries.languages(opened)
    assert pair is not None  # the page is not drawn without
    return pair if BridgeFields.of(selection).way == "forth" else (pair[1], pair[0])


@st.cache_resource(show_spinner=False)
def _kept() -> update_queries.Kept:
    return update_queries.Kept(KEPT_BLOCKS)


def coordinates(
    opened: Opened, selection: Selection, layer: int, making: Callable[[], None] | None = None
) -> Coordinates:
    """k → coordinates of the first and the second language in the block's own Z, each (n, k).

    Args:
        making: called when they are not kept and have to be made.
    """
    model = geometry.model_of(selection)
    space = spaces.relevant(opened, selection)
    where = (selection.site, selection.position, selection.split, selection.category, selection.joined, space)
    key = ("bridge", opened.key, model, layer, *where)

    def make() -> Coordinates:
        if making is not None:
            making()
        both = [
            opened.store.activations(model, selection.site, layer, selection.position, rows=rows)
            for rows in geometry_queries.problem_rows(opened, selection, MOST)
        ]
        return spaces.coordinates(opened, selection, layer, both)

    return cast(Coordinates, _kept().get(key, make))


def sides(opened: Opened, selection: Selection, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates to start from and to reach, each (n, k), at the selected k."""
    one, two = coordinates(opened, selection, layer)[selection.k]
    return (one, two) if BridgeFields.of(selection).way == "forth" else (two, one)


def kinds(opened: Opened, selection: Selection) -> list[str] | None:
    """Category of each problem where pairs are permuted within categories, else None."""
    if not within(opened, selection):
        return None
    one, _ = geometry_queries.problem_rows(opened, selection, MOST)
    return [str(kind) for kind in opened.store.prompts["category"].gather(one).to_list()]


def several(opened: Opened, selection: Selection) -> bool:
    """Whether the problems are of several categories; those without one are a category, too."""
    prompts = opened.store.prompts
    return (
        selection.category == "all" and "category" in prompts.columns and prompts["category"].n_unique() > 1
    )


def within(opened: Opened, selection: Selection) -> bool:
    """Whether the null exchanges problems of one category only."""
    return several(opened, selection) and BridgeFields.of(selection).pairing != "across"


def across(opened: Opened, selection: Selection) -> bool:
    """Whether it exchanges problems of several categories with each other."""
    return several(opened, selection) and not within(opened, selection)


def _relevant(selection: Selection) -> tuple[Any, ...]:
    names = (
        "a",
        "b",
        "model",
        "site",
        "position",
        "split",
        "category",
        "joined",
        "k",
    )
    own = (BridgeFields.of(selection), ArdFields.of(selection).penalty)
    return *(getattr(selection, name) for name in names), *own


def _key(opened: Opened, selection: Selection) -> tuple[Any, ...]:
    return *opened.key, spaces.relevant(opened, selection)


def fitted(opened: Opened, selection: Selection) -> Bridge:
    """The bridge at the selected block."""
    return _fitted(_key(opened, selection), opened, selection, selection.layer)


@st.cache_resource(
    show_spinner="Fitting and permuting pairs…", max_entries=256, hash_funcs={Selection: _relevant}
)
def _fitted(key: tuple[Any, ...], _opened: Opened, selection: Selection, layer: int) -> Bridge:
    return fit_bridge(
        *sides(_opened, selection, layer),
        method=BridgeFields.of(selection).fit,  # type: ignore[arg-type]
        center=BridgeFields.of(selection).intercept == "yes",
        groups=kinds(_opened, selection),
        draws=DRAWS,
        seed=SEED,
    )


def along(opened: Opened, selection: Selection) -> tuple[list[int], Profile]:
    """Blocks, and the left-out R² of each with its own Z."""
    return spaces.blocks(opened, selection), _along(_key(opened, selection), opened, selection)


@st.cache_resource(show_spinner="Fitting every block…", max_entries=256, hash_funcs={Selection: _relevant})
def _along(key: tuple[Any, ...], _opened: Opened, selection: Selection) -> Profile:
    return profile(
        (sides(_opened, selection, block) for block in spaces.blocks(_opened, selection)),
        method=BridgeFields.of(selection).fit,  # type: ignore[arg-type]
        center=BridgeFields.of(selection).intercept == "yes",
        groups=kinds(_opened, selection),
        draws=PROFILE_DRAWS,
        seed=SEED,
    )


@st.cache_data(show_spinner=False, max_entries=64)
def random_spectrum(k: int) -> np.ndarray:
    """(2, k): range of the singular values of random matrices of unit norm."""
    return np.array(analysis.random_spectrum(k, seed=SEED))


def prepare(opened: Opened, selection: Selection, progress: Progress) -> None:
    """Read and project what the selection needs and is not kept yet, behind a progress bar."""
    blocks = spaces.blocks(opened, selection)
    wanted = blocks if selection.parts == "shown" else [selection.layer]
    bar: list[Callable[[int, int], None]] = []

    def begin() -> None:
        if not bar:
            bar.append(progress("Projecting activations onto Z…"))

    for done, block in enumerate(wanted):
        coordinates(opened, selection, block, begin)
        if bar:
            bar[0](done + 1, len(wanted))
