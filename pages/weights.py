"""Weight diffs: which weights a fine-tune changed, by how much, in how many directions and in which heads."""

import streamlit as st

from app import components, controls, weights, weights_view

opened = components.begin(
    "Weight diffs",
    "Which weights did the fine-tune change, by how much, and in how many directions?",
)
chosen = controls.current()
if weights.model_of(opened, chosen) is None:
    components.empty(*weights.NOTHING)
    st.stop()
weights_view.model_control(opened)
left, right = st.columns(2)
with left:
    controls.slide("layer", "Block ℓ")
with right:
    weights_view.tensor_control(opened)
with controls.row():
    controls.switch("weights", "Shown per tensor", weights.MEASURES)
    controls.switch("head_part", "Heads of the projection", weights.PARTS)

with components.guard("weights: panels"):
    for panel in weights.panels(opened, controls.current()):
        components.show(opened, panel)
