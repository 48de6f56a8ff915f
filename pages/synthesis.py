"""Synthesis: what a two-language study has found, against a checklist."""

import streamlit as st

from app.frame import controls
from app.frame import parts as components
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.synthesis import view as synthesis
from app.synthesis.analysis import SYNTHESIS

opened = components.begin(SYNTHESIS.title, SYNTHESIS.question)
if not synthesis.available(opened):
    components.empty(*synthesis.WHY_EMPTY)
    st.stop()
left, right = st.columns(2)
with left:
    controls.steps("k", "Rank k of Z", geometry_queries.ranks(opened))
with right:
    controls.slide("layer", "Block ℓ, with the next one")
with controls.row():
    controls.switch("model", "Model", geometry.model_names(controls.current()))
    controls.switch("joined", "Heads joined", geometry.JOINED)
controls.filter_controls(spoken=False)
with components.guard("synthesis"):
    chosen = synthesis.effective(opened, controls.current())
    synthesis.prepare(opened, chosen, components.progress)
    synthesis.show(opened, chosen)
