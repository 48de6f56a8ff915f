"""Z-patching: what a subspace carries from one language into another's answers."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.z_patching import controls as z_patching_controls
from app.z_patching import fits as z_patching_fits
from app.z_patching import tokens as z_patching_tokens
from app.z_patching import view as z_patching_view
from app.z_patching import words
from app.z_patching.analysis import Z_PATCHING

opened = components.begin(Z_PATCHING.title, Z_PATCHING.question)
if len(opened.facts.languages) < 2 or "pair_id" not in opened.store.prompts.columns:
    components.empty(*z_patching_view.WHY_EMPTY)
    st.stop()
z_patching_controls.choosers(opened)

chosen = controls.current()
with components.guard("z-patching"):
    wanted = z_patching_view.experiment_of(opened, chosen)
    found = live_view.stored(opened, wanted)
    if found is None:
        live_view.rejoin(opened, wanted)
    unfitted = [] if found is not None else z_patching_fits.missing(opened, wanted)
    if unfitted:
        z_patching_fits.ask_first(opened, unfitted)
    else:
        live_view.run_button(opened, [wanted], done=found is not None)
    live_view.watch()
    z_patching_view.watch_rows(wanted)
    if found is None and not unfitted and not live_view.active():
        components.empty(*z_patching_view.not_run(wanted))
    if found is not None:
        screen.info(words.baseline(found.summary), icon=":material/balance:")
        z_patching_controls.cells(opened, found)
        panels = z_patching_view.run_panels(opened, found, chosen)
        components.show(opened, panels[0])
        problem = z_patching_view.outputs(opened, found, chosen)
        if problem is not None:
            cell = z_patching_view.shown_cell(opened, found, chosen)
            z_patching_tokens.show(opened, found, problem, cell)
        for panel in panels[1:]:
            components.show(opened, panel)
        for note in found.summary["notes"]:
            screen.caption(plain(note))
