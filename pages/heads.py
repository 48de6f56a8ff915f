"""Heads: which attention heads carry what one model does to the other's next token."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.heads import view as heads_view
from app.heads.analysis import HEADS
from app.patching import replacement as patch_view

opened = components.begin(HEADS.title, HEADS.question)
allowed = opened.facts.tokens
if not allowed:
    components.empty(*heads_view.WHY_EMPTY)
    st.stop()
first, second, third, fourth = st.columns(4)
with first:
    controls.choose("target", "Direction (target ← source)", names=patch_view.directions(controls.current()))
with second:
    controls.choose("substitute", "Substitute", None, heads_view.SUBSTITUTES.__getitem__, heads_view.HELP)
with third:
    controls.choose("position", "Patched token", only=allowed)
with fourth:
    controls.slide("layer", "Block ℓ")
with controls.row():
    controls.filter_controls(None)
    with controls.more():
        controls.switch("vectors", "Vectors", heads_view.VECTORS)
        controls.read_at()

chosen = controls.current()
with components.guard("heads: experiments"):
    block, every = heads_view.experiment_of(chosen), heads_view.map_of(chosen)
    found, mapped = live_view.stored(opened, block), live_view.stored(opened, every)
    left, right = st.columns(2)
    with left:
        live_view.run_button(opened, [block], "Run this block", done=found is not None)
    with right:
        live_view.run_button(opened, [every], "Run every block's map", done=mapped is not None, key="run-map")
    live_view.watch()
    heads_view.watch_map(chosen.layer)
    if found is None and not live_view.active():
        components.empty(*heads_view.not_run(chosen))
    if found is not None:
        why = heads_view.nothing(found)
        if why is not None:
            components.empty(*why)
        for panel in heads_view.run_panels(opened, found, chosen):
            components.show(opened, panel)
        for note in found.summary["notes"]:
            screen.caption(plain(note))
    if mapped is not None:
        for panel in heads_view.run_panels(opened, mapped, chosen):
            components.show(opened, panel)
