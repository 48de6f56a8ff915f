"""The controls of the Z-patching page, bound to its settings in the link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import screen
from app.frame import controls
from app.frame.opened import Opened
from app.live.jobs import JobResult
from app.z_patching import fits as z_patching_fits
from app.z_patching import view as z_patching_view
from app.z_patching.view import FOLDS, LENGTHS, MODES, SCOPES, SITES, VECTORS
from engine.z_patching.spec import BASES, ZPatching


def choosers(opened: Opened) -> None:
    """Model, direction, blocks, dimensions, how the vector is made and put in, and how much is run."""
    facts = opened.facts
    chosen = z_patching_view.settings_of(opened, controls.current())
    first, second, third = st.columns(3)
    with first:
        if len(facts.models) > 1:
            now = controls.current()
            controls.switch("model", "Model", {"a": now.a, "b": now.b})
        _direction(opened, chosen.target, chosen.source)
    with second:
        controls.slide("layer", "First block ℓ")
        _pick(
            opened,
            "layers",
            "Blocks",
            (1, 2, 3, 4),
            {1: "ℓ alone", 2: "ℓ and ℓ+1", 3: "ℓ to ℓ+2", 4: "ℓ to ℓ+3"},
        )
    with third:
        _dimensions(opened, chosen.ks)
        _pick(
            opened,
            "basis",
            "Z is spanned by",
            tuple(BASES),
            {name: f"{name}: {text}" for name, text in BASES.items()},
        )
        if chosen.basis == "ard":
            _fits(opened)
    with screen.expander("How it is patched, and how many", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            _pick(opened, "mode", "Mode", tuple(MODES), MODES)
            _pick(opened, "vectors", "Source vector", tuple(VECTORS), VECTORS)
        with middle:
            _pick(opened, "scope", "Scope", tuple(SCOPES), SCOPES)
            _pick(opened, "site", "Site", tuple(SITES), SITES)
            if chosen.basis in ("blocks", "kernels"):
                _pick(opened, "fold", "Head kernels", tuple(FOLDS), FOLDS)
        with right:
            _pick(opened, "problems", "Problems, at most", (10, 20, 50, 100, 250), {})
            _pick(opened, "tokens", "New tokens, at most", LENGTHS, {})
            _pick(opened, "draws", "Random subspaces", (2, 4, 8, 16), {})
    controls.filter_controls("report")


def _pick(opened: Opened, name: str, text: str, options: Sequence[Any], names: Mapping[Any, str]) -> None:
    key = f"z-{name}"
    now = getattr(z_patching_view.settings_of(opened, controls.current()), name)
    values = list(options) if now in options else sorted([*options, now])
    st.session_state[key] = now
    screen.selectbox(
        text,
        values,
        key=key,
        format_func=lambda value: names.get(value, str(value)),
        on_change=lambda: z_patching_view.set_z(opened, **{name: st.session_state[key]}),
    )


def _fits(opened: Opened) -> None:
    """Which stored fits of lengthscales span Z; nothing to choose where none is stored."""
    wanted = z_patching_view.experiment_of(opened, controls.current())
    known = z_patching_fits.offered(opened, wanted)
    if not known or wanted.lengthscales is None:
        return
    st.session_state["z-fit"] = z_patching_fits.key_of(wanted.lengthscales)
    screen.selectbox(
        "Fit of lengthscales",
        list(known),
        key="z-fit",
        format_func=known.__getitem__,
        on_change=lambda: z_patching_view.set_z(opened, fit=st.session_state["z-fit"]),
    )


def _direction(opened: Opened, target: str, source: str) -> None:
    names = opened.facts.languages
    pairs = [(a, b) for a in names for b in names if a != b]
    st.session_state["z-direction"] = (target, source)

    def changed() -> None:
        to, origin = st.session_state["z-direction"]
        z_patching_view.set_z(opened, target=to, source=origin)

    screen.selectbox(
        "Direction (answers in ← patched from)",
        pairs,
        key="z-direction",
        format_func=lambda pair: f"{pair[0]} ← {pair[1]}",
        on_change=changed,
    )


def _dimensions(opened: Opened, ks: tuple[int, ...]) -> None:
    now = controls.current()
    offered = z_patching_view.offered_ks(opened, now.a if now.model == "a" else now.b)
    st.session_state["z-ks"] = list(ks)

    def changed() -> None:
        z_patching_view.set_z(opened, ks=tuple(sorted(st.session_state["z-ks"])) or ks)

    screen.multiselect(
        "Dimensions k",
        sorted({*offered, *ks}),
        key="z-ks",
        on_change=changed,
        max_selections=z_patching_view.MOST_KS,
    )


def cells(opened: Opened, result: JobResult) -> None:
    """Which block and dimension is shown, of those that were run."""
    run = ZPatching.from_json(result.condition)
    found = z_patching_view.shown_cell(opened, result, controls.current())
    options = [f"{layer}@{k}" for layer in run.layers for k in run.ks]
    st.session_state["z-show"] = f"{found['layer']}@{found['k']}"
    if len(options) < 2:
        return
    screen.segmented_control(
        "Shown",
        options,
        key="z-show",
        required=True,
        format_func=lambda text: "block {}, k = {}".format(*text.split("@")),
        on_change=lambda: z_patching_view.set_z(opened, show=st.session_state["z-show"]),
    )
