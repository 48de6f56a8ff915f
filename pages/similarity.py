"""Similarity: in which blocks two models represent the prompts differently."""

import streamlit as st

from app import components, controls, similarity

opened = components.begin(
    "Similarity (CKA)",
    "Do two models place the same prompts in the same geometry, block by block?",
)
controls.pair_controls()
left, middle, right = st.columns(3)
with left:
    controls.choose("site", "Site", only=similarity.SITES)
with middle:
    controls.choose("position", "Token position")
with right:
    controls.slide("layer", "Block ℓ")
controls.filter_controls()
with controls.row():
    controls.switch("estimator", "Headline estimator", {"debiased": "debiased", "biased": "biased"})
    controls.switch("view", "Vertical axis", {"values": "fit to the values", "null": "down to the null"})
    controls.switch("interval", "Interval", {"bootstrap": "bootstrap", "jackknife": "jackknife"})

chosen = controls.current()
for make in similarity.panels(chosen):
    with components.guard(f"similarity: {make.__name__}"):
        panel = make(opened, chosen)
        if panel is not None:
            components.show(opened, panel)
