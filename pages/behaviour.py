"""Behaviour: what the models do with the prompts, and what a patch does to it."""

import streamlit as st

from app import screen
from app.behaviour import corrections
from app.behaviour import view as behaviour_view
from app.behaviour.analysis import BEHAVIOUR
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view

opened = components.begin(BEHAVIOUR.title, BEHAVIOUR.question)
offered = behaviour_view.offered_interventions(opened, controls.current())
left, right = st.columns(2)
with left:
    behaviour_view.figure_control(opened)
with right:
    behaviour_view.intervention_control(offered)
if behaviour_view.chosen_interventions(controls.current(), offered):
    controls.slide("alpha", "Amplitude α of the patches", step=0.05)
controls.filter_controls("report")

chosen = controls.current()
with components.guard("behaviour: runs"):
    patches = behaviour_view.chosen_interventions(
        chosen, behaviour_view.offered_interventions(opened, chosen)
    )
    wanted = behaviour_view.wanted(
        chosen, patches, behaviour_view.lead_of(opened), behaviour_view.wording_of(opened)
    )
    wanted = corrections.applied(opened, chosen, wanted)
    runs = behaviour_view.found_runs(opened, wanted)
    missing = [one for name, one in behaviour_view.named(wanted).items() if name not in runs]
    live_view.run_button(opened, missing, done=not missing)
    live_view.watch()
    if missing and not live_view.active():
        components.empty(*behaviour_view.not_run(missing))
    if runs:
        shown = behaviour_view.panels(opened, runs, chosen)
        for panel in shown:
            components.show(opened, panel)
        if not shown:
            components.empty(*behaviour_view.WHY_NO_FIGURE)
        corrections.show(opened, runs, behaviour_view.named(wanted))
        behaviour_view.answers(runs)
        behaviour_view.show_wording(opened)
        for note in dict.fromkeys(n for run in runs.values() for n in run.summary["notes"]):
            screen.caption(plain(note))
