"""Runs: every live result of this study, opened again without a model."""

import streamlit as st

from app import components, controls, patch_view, runs_view

opened = components.begin(
    "Runs", "Every live patch of this study, kept in the store; opening one needs no model."
)
listed = runs_view.table(opened)
if not listed.height:
    components.empty(*runs_view.WHY_EMPTY)
    st.stop()
runs_view.pick(listed)

chosen = controls.current()
if not chosen.run:
    st.caption("Select a row to open the run.")
    st.stop()
with components.guard("runs: open"):
    run = runs_view.open_run(opened, chosen.run)
    condition = runs_view.condition(run)
    changes = patch_view.selection_of(run.condition, chosen)
    components.page_link(
        "patching", "Open in Patching, to run it again or change it", controls.link(**changes, run="")
    )
    alpha = float(run.summary["curve"][-1]["alpha"]) if len(run.summary["curve"]) == 1 else chosen.alpha
    code = patch_view.code(opened.path, condition)
    components.show(opened, patch_view.histogram_panel(run, alpha, code))
    curve = patch_view.alpha_panel(run, alpha, code)
    if curve is not None:
        components.show(opened, curve)
    components.tokens(patch_view.token_table(run.table, alpha))
