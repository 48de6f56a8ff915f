"""Residual updates R(l): how much of what each block adds lies in the subspace Z."""

import streamlit as st

from app import components, controls, updates

opened = components.begin(
    "Residual updates R(ℓ)",
    "How much of what each block adds to the stream lies in the subspace Z that one block's heads read?",
)
if not updates.available(opened):
    components.empty(*updates.WHY_EMPTY)
    st.stop()
controls.pair_controls()
left, middle, right = st.columns(3)
with left:
    controls.choose("position", "Token position", only=updates.positions(opened))
with middle:
    controls.steps("k", "Rank k of Z", updates.ranks(opened))
with right:
    controls.slide("ref", "Reference block of Z")
controls.filter_controls()
with controls.row():
    controls.switch("model", "Model", updates.model_names(controls.current()))
    controls.switch("scale", "Show", {"r": "R", "r_over_chance": "R ÷ chance"})
    means = {"ratio_of_means": "ratio of means", "mean_of_ratios": "mean of ratios"}
    controls.switch("mean", "Average", means)
    controls.switch("parts", "Attention / MLP", {"shown": "shown", "hidden": "hidden"})

chosen = updates.effective(opened, controls.current())
with components.guard("residual updates: measure"):
    updates.prepare(opened, chosen, components.progress)
    for make in updates.PANELS:
        with components.guard(f"residual updates: {make.__name__}"):
            panel = make(opened, chosen)
            if panel is not None:
                components.show(opened, panel)
