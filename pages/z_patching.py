"""Z-patching: what a subspace carries from one language into another's answers."""

import streamlit as st

from app import (
    components,
    controls,
    live_view,
    z_patching_controls,
    z_patching_fits,
    z_patching_tokens,
    z_patching_view,
)
from app import z_patching_words as words

opened = components.begin(
    "Z-patching",
    "Does the subspace that attention reads carry the answer or the language from one language to another?",
)
if len(opened.facts.languages) < 2 or "pair_id" not in opened.store.prompts.columns:
    components.empty(*z_patching_view.WHY_EMPTY)
    st.stop()
controls.pair_controls()
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
        st.info(words.baseline(found.summary), icon=":material/balance:")
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
            st.caption(components.plain(note))
