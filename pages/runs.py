"""Runs: every live result of this study, opened again without a model."""

import streamlit as st

from app import screen
from app.frame import controls
from app.frame import parts as components
from app.frame.stored import opened_run
from app.runs import notes
from app.runs import view as runs_view

opened = components.begin(
    "Runs", "Every live experiment of this study, kept in the store; opening one needs no model.", pair=False
)
notes.show(opened, controls.current().run)
listed = runs_view.table(opened)
if not listed.height:
    components.empty(*runs_view.WHY_EMPTY)
    st.stop()

chosen = controls.current()
runs_view.pick(listed, chosen.run)
if not chosen.run:
    screen.caption("Select a row to open the run.")
    st.stop()
with components.guard("runs: open"):
    runs_view.show(opened, opened_run(opened, chosen.run), chosen)
