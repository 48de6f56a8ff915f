"""Overview: what is in the store and whether it can be trusted."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import parts as components
from app.frame import related
from app.overview import panels as overview
from app.overview.analysis import OVERVIEW

opened = components.begin(OVERVIEW.title, OVERVIEW.question, blocking=False)
with st.container(horizontal=True, gap="small", key="facts"):
    for name, value, note in overview.facts(opened):
        screen.metric(name, value, help=note, border=True, width=128)

screen.markdown("#### Models")
screen.dataframe(overview.models(opened), hide_index=True, width="stretch")

for model in opened.facts.models[1:]:
    with components.guard(f"overview: {model}"):
        screen.caption(plain(related.sentence(opened, model)))

left, right = st.columns(2, gap="medium")
with left, components.guard("overview: prompts"):
    components.show(opened, overview.prompts_panel(opened))
with right, components.guard("overview: disk use"):
    components.show(opened, overview.disk_panel(opened))

screen.markdown("#### Self-checks of the precompute run")
checks = components.checks_table(opened)
if checks.height:
    screen.dataframe(checks, hide_index=True, width="stretch")
else:
    screen.markdown("None were recorded.")
