"""Runs: every live result of this study, opened again without a model, or several side by side."""

import streamlit as st

from app import screen
from app.frame import controls
from app.frame import parts as components
from app.frame.stored import opened_run
from app.runs import compare, notes
from app.runs import view as runs_view

opened = components.begin(
    "Runs", "Every live experiment of this study, kept in the store; opening one needs no model.", pair=False
)
chosen = controls.current()
selected = runs_view.ids(chosen.run)
notes.show(opened, selected[0] if len(selected) == 1 else "")
listed = runs_view.table(opened)
if not listed.height:
    components.empty(*runs_view.WHY_EMPTY)
    st.stop()

runs_view.pick(runs_view.narrowed(listed), selected)
if not selected:
    screen.caption("Select a row to open the run; several of one kind to compare them.")
    st.stop()
with components.guard("runs: open"):
    runs = [opened_run(opened, run_id) for run_id in selected]
    if len(runs) == 1:
        runs_view.show(opened, runs[0], chosen)
    else:
        compare.show(opened, selected, runs)
