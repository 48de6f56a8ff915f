"""Controls of the weight-difference page."""

from __future__ import annotations

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame.opened import Opened
from app.weights import panels as weights
from app.weights import tables as weights_queries


def model_control(opened: Opened) -> None:
    """Which difference is looked at: a model's, which becomes model B, or a contrast."""
    offered = weights_queries.differences(opened)
    names = {name: weights_queries.label(opened, name) for name in offered}
    if len(offered) < 2:
        screen.caption(plain(names[offered[0]]))
        return
    st.session_state["weights-model"] = weights.model_of(opened, controls.current())
    screen.selectbox(
        "Difference",
        offered,
        key="weights-model",
        format_func=names.__getitem__,
        on_change=lambda: _chosen(opened, st.session_state["weights-model"]),
    )


def _chosen(opened: Opened, name: str) -> None:
    changes = {} if name in weights_queries.contrasts(opened) else {"b": name}
    controls.change(delta=name, **changes)


def tensor_control(opened: Opened) -> None:
    """Which tensor of the selected block shows its spectrum."""
    chosen = controls.current()
    model = weights.model_of(opened, chosen)
    offered = () if model is None else weights_queries.parts_at(opened, model, chosen.layer)
    if not offered:
        screen.caption(f"No matrix of block {chosen.layer} differs; pick another block for a spectrum.")
        return
    controls.bound("tensor", "weights-tensor", "Tensor", offered, weights.part_of(opened, chosen))
