"""Rank k × α: how many dimensions carry what one model's activation does in the other; steering."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.selection import SITES
from app.patching import replacement as patch_view
from app.rank import view as rank_view
from app.rank.analysis import RANK
from app.steering import take
from app.steering import view as steering_view

opened = components.begin(RANK.title, RANK.question)
allowed = opened.facts.tokens
if not allowed:
    components.empty(*live_view.WHY_NO_TOKEN)
    st.stop()
part = controls.switch("part", "What to look at", {"rank": "Rank k × α", "steering": "Steering and ablation"})
first, second, third, fourth = st.columns(4)
with first:
    controls.choose("target", "Direction (target ← source)", names=patch_view.directions(controls.current()))
with second:
    controls.choose("site", "Site", only=[site for site in SITES if site != "head_out"])
with third:
    controls.choose("position", "Patched token", only=allowed)
with fourth:
    controls.slide("layer", "Block ℓ")
if part == "rank":
    rank_view.rank_controls()
else:
    steering_view.steering_controls(opened)

view = rank_view if part == "rank" else steering_view
with components.guard(f"rank: {part}"):
    chosen = controls.current()
    wanted = view.experiment_of(chosen)
    found = live_view.stored(opened, wanted)
    missing = [one for one in view.experiments(chosen) if live_view.stored(opened, one) is None]
    live_view.run_button(opened, missing, done=not missing)
    live_view.watch()
    if found is None and not live_view.active():
        components.empty(*view.not_run(chosen))
    if found is not None:
        for panel in view.run_panels(opened, found, chosen):
            components.show(opened, panel)
        if part != "rank":
            take.show(opened, found)
        for note in found.summary["notes"]:
            screen.caption(plain(note))
