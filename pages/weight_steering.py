"""Weight steering α: a model with W + αΔW, and what that does to its behaviour and to everything else."""

import streamlit as st

from app import components, controls, live_view, weight_steering_view

opened = components.begin(
    "Weight steering α",
    "What does a fine-tune's weight difference do when there is more of it, less, or its opposite?",
)
if not weight_steering_view.can_steer(opened):
    components.empty(*weight_steering_view.NOTHING)
    st.stop()
weight_steering_view.steering_controls(opened)

with components.guard("weight steering: runs"):
    chosen = controls.current()
    wanted = weight_steering_view.asked(opened, chosen)
    found = live_view.stored(opened, wanted)
    live_view.run_button(opened, [wanted], done=found is not None)
    live_view.watch()
    if found is None and not live_view.active():
        components.empty(*weight_steering_view.not_run(wanted))
    if found is not None:
        for panel in weight_steering_view.run_panels(opened, found, chosen):
            components.show(opened, panel)
        weight_steering_view.answers(found, chosen)
        for note in found.summary["notes"]:
            st.caption(components.plain(note))
