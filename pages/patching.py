"""Live patching: replace one activation of one model by another's and see what the next token does."""

import streamlit as st

from app import components, controls, patch_page, patch_view

opened = components.begin(
    "Patching",
    "What happens to one model's next token when the activation at one site is replaced by the other's?",
)
if not patch_view.patch_positions(opened.facts.positions):
    components.empty(*patch_view.WHY_EMPTY)
    st.stop()
controls.pair_controls()
if controls.switch("patch", "View", {"table": "Raw vs mapped", "one": "One replacement"}) == "table":
    patch_page.table(opened)
else:
    patch_page.one(opened)
