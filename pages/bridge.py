"""Bridge: is one language's part of Z a linear map of the other's?"""

import streamlit as st

from app import bridge, bridge_queries, components, controls, geometry, geometry_queries

opened = components.begin(
    "Bridge",
    "Does a linear map lead from one language's activations in Z to the other's, problem by problem?",
)
if not bridge.available(opened):
    components.empty(*bridge.WHY_EMPTY)
    st.stop()
controls.pair_controls()
first, second, third = st.columns(3)
with first:
    controls.steps("k", "Rank k of Z", geometry_queries.ranks(opened))
with second:
    controls.slide("layer", "Block ℓ")
with third:
    controls.choose("position", "Token position", only=opened.facts.positions)
left, right = st.columns([2, 1], vertical_alignment="bottom")
with left:
    controls.choose("site", "Stream", only=geometry.sites(opened))
with right:
    controls.filter_controls(spoken=False)
with controls.row():
    controls.switch("model", "Model", geometry.model_names(controls.current()))
    controls.switch("way", "From → to", bridge.ways(opened))
    controls.switch("joined", "Heads joined", geometry.JOINED)
    controls.switch("fit", "Fit", bridge.FITS)
    if len(opened.facts.categories) > 1:
        controls.switch("pairing", "Null pairs with", bridge.PAIRINGS)
    controls.switch("parts", "Profile over blocks", {"shown": "shown", "hidden": "hidden"})

with components.guard("bridge: fit"):
    chosen = bridge_queries.effective(opened, controls.current())
    bridge_queries.prepare(opened, chosen, components.progress)
    note = bridge.warning(opened, chosen)
    if note is not None:
        st.warning(note, icon=":material/warning:")
    for panel in bridge.panels(opened, chosen):
        with components.guard(f"bridge: {panel.name}"):
            components.show(opened, panel)
