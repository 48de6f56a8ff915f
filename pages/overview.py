"""Overview: what is in the store and whether it can be trusted."""

import streamlit as st

from app import components, overview

opened = components.begin(
    "Overview", "What this store holds, where it came from and whether it can be trusted.", blocking=False
)
with st.container(horizontal=True, gap="small", key="facts"):
    for name, value, note in overview.facts(opened):
        st.metric(name, value, help=note, border=True, width=128)

st.markdown("#### Models")
st.dataframe(overview.models(opened), hide_index=True, width="stretch")

left, right = st.columns(2, gap="medium")
with left, components.guard("overview: prompts"):
    components.show(opened, overview.prompts_panel(opened))
with right, components.guard("overview: disk use"):
    components.show(opened, overview.disk_panel(opened))

st.markdown("#### Self-checks of the precompute run")
checks = components.checks_table(opened)
if checks.height:
    st.dataframe(checks, hide_index=True, width="stretch")
else:
    st.markdown("None were recorded.")
