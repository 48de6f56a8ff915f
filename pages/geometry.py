"""Z geometry: what the heads of a block read, and whether two languages part there."""

import streamlit as st

from app.frame import controls
from app.frame import parts as components
from app.geometry import separation as geometry_separation
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.geometry.analysis import GEOMETRY

opened = components.begin(GEOMETRY.title, GEOMETRY.question)
components.need_position(opened)
if not geometry.available(opened):
    components.empty(*geometry.WHY_EMPTY)
    st.stop()
compare = geometry.comparable(opened)
first, second, third = st.columns(3)
with first:
    controls.steps("k", "Rank k of Z", geometry_queries.ranks(opened))
with second:
    controls.slide("layer", "Block ℓ")
with third:
    controls.slide("ref", "Reference block")
with controls.row():
    controls.switch("model", "Model", geometry.model_names(controls.current()))
    if compare:
        controls.switch("layers", "Prompts at", geometry.LAYERS)
        controls.filter_controls(spoken=False)
    with controls.more():
        controls.switch("joined", "Heads joined", geometry.JOINED)
        if compare:
            controls.choose("position", "Token, beside the mean", only=geometry.tokens(opened))
            controls.choose("site", "Stream", only=geometry.sites(opened))

chosen = geometry.effective(opened, controls.current())
model = geometry.model_of(chosen)
with components.guard("geometry: measure"):
    geometry_queries.prepare(opened, model, chosen, components.progress)
    if compare:
        sides = st.columns(len(geometry_queries.poolings(opened, chosen)))
        for side, pooling in zip(sides, geometry_queries.poolings(opened, chosen), strict=True):
            for make in geometry_separation.makers(chosen):
                with side, components.guard(f"geometry: {make.__name__}"):
                    components.show(opened, make(opened, chosen, pooling))
    else:
        components.empty(*geometry.WHY_ONE_LANGUAGE)
    for draw in geometry.WEIGHTS:
        with components.guard(f"geometry: {draw.__name__}"):
            panel = draw(opened, chosen)
            if panel is not None:
                components.show(opened, panel)
            elif draw is geometry.gates_panel:
                components.empty(*geometry.WHY_NO_GATE)
