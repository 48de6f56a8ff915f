"""ARD-MMD: which dimensions carry what two languages share about a problem?"""

import streamlit as st

from app.ard import view as ard_view
from app.ard.analysis import ARD
from app.ard.fields import ArdFields
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.geometry import weights as geometry

opened = components.begin(ARD.title, ARD.question)
if not ard_view.available(opened):
    components.empty(*ard_view.WHY_EMPTY)
    st.stop()
first, second, third = st.columns([1, 1, 1], vertical_alignment="bottom")
with first:
    controls.slide("layer", "Block ℓ")
with second:
    controls.choose("site", "Site", only=ard_view.sites(opened))
with third:
    ard_view.settings()
with controls.row():
    controls.switch("model", "Model", geometry.model_names(controls.current()))
    controls.switch("objective", "Objective", ard_view.OBJECTIVES, help=ard_view.OBJECTIVE_HELP)
    starts = list(ard_view.STARTS) if ard_view.ranks(opened) else ["cold"]
    controls.switch("start", "Start", ard_view.STARTS, only=starts, help=ard_view.START_HELP)
    controls.switch("layers", "Fit", ard_view.LAYERS)

chosen = ard_view.effective(opened, controls.current())
with components.guard("ard: fits"):
    wanted = ard_view.grid(opened, chosen)
    left = ard_view.missing(opened, wanted)
    live_view.run_button(opened, left, ard_view.run_text(wanted, left), done=not left)
    live_view.watch()
    ard_view.watch_fit()
    fits = ard_view.fits_of(opened, chosen)
    if not any(layer == chosen.layer for layer, _ in fits) and not live_view.active():
        components.empty(*ard_view.not_run(chosen))
    if fits:
        with controls.row():
            controls.switch("penalty", "Penalty shown", ard_view.PENALTY_NAMES)
            controls.switch("rule", "Threshold", ard_view.RULES)
        if ArdFields.of(chosen).rule == "fixed":
            controls.slide("cut", "Threshold, log₁₀ ℓ", step=0.05)
        if ard_view.ranks(opened):
            controls.steps("k", "Rank k of Z", ard_view.ranks(opened))
        for panel in ard_view.panels(opened, chosen, fits):
            with components.guard(f"ard: {panel.name}"):
                components.show(opened, panel)
