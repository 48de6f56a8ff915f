"""Rank k × α: how many dimensions carry what one model's activation does in the other; steering."""

import streamlit as st

from app import components, controls, live_view, patch_view, rank_view, steering_view
from app.selection import SITES

opened = components.begin(
    "Rank k × α",
    "How many dimensions carry what one model does to the other, and what does a single direction do?",
)
allowed = patch_view.patch_positions(opened.facts.positions)
if not allowed:
    components.empty(*rank_view.WHY_EMPTY)
    st.stop()
part = controls.switch("part", "What to look at", {"rank": "Rank k × α", "steering": "Steering and ablation"})
controls.pair_controls()
first, second, third = st.columns(3)
with first:
    controls.choose("target", "Direction (target ← source)", names=patch_view.directions(controls.current()))
with second:
    controls.choose("site", "Site", only=[site for site in SITES if site != "head_out"])
with third:
    controls.choose("position", "Patched token", only=allowed)
left, right = st.columns(2)
with left:
    controls.slide("layer", "Block ℓ")
with right:
    controls.switch("read_at", "Read at", {"patched": "patched token", "decision": "decision token"})
if part == "rank":
    rank_view.rank_controls()
else:
    steering_view.steering_controls(opened)

view = rank_view if part == "rank" else steering_view
with components.guard(f"rank: {part}"):
    chosen = controls.current()
    wanted = view.experiment_of(chosen)
    found = live_view.stored(opened, wanted)
    live_view.run_button(opened, [wanted], done=found is not None)
    live_view.watch()
    if found is None and not live_view.active():
        components.empty(*view.not_run(chosen))
    if found is not None:
        for panel in view.run_panels(opened, found, chosen):
            components.show(opened, panel)
        for note in found.summary["notes"]:
            st.caption(components.plain(note))
