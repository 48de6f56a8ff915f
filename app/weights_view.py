"""Controls of the weight-difference page."""

from __future__ import annotations

import streamlit as st

from app import controls, weights, weights_queries
from app.resources import Opened


def model_control(opened: Opened) -> None:
    """Which model's difference is looked at; it becomes model B."""
    offered = weights_queries.compared(opened)
    first = opened.facts.models[0]
    if len(offered) < 2:
        st.caption(f"{offered[0]} − {first}")
        return
    st.session_state["weights-model"] = weights.model_of(opened, controls.current())
    st.selectbox(
        "Difference",
        offered,
        key="weights-model",
        format_func=lambda name: f"{name} − {first}",
        on_change=lambda: controls.change(b=st.session_state["weights-model"]),
    )


def tensor_control(opened: Opened) -> None:
    """Which tensor of the selected block shows its spectrum."""
    chosen = controls.current()
    model = weights.model_of(opened, chosen)
    offered = () if model is None else weights_queries.parts_at(opened, model, chosen.layer)
    if not offered:
        st.caption(f"No matrix of block {chosen.layer} differs; pick another block for a spectrum.")
        return
    st.session_state["weights-tensor"] = weights.part_of(opened, chosen)
    st.selectbox(
        "Tensor",
        offered,
        key="weights-tensor",
        on_change=lambda: controls.change(tensor=st.session_state["weights-tensor"]),
    )
