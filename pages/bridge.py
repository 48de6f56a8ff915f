"""Bridge: is one language's part of Z a linear map of the other's?"""

import streamlit as st

from app import screen
from app.bridge import panels as bridge
from app.bridge import spaces
from app.bridge import tables as bridge_queries
from app.bridge.analysis import BRIDGE
from app.frame import controls
from app.frame import parts as components
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry

opened = components.begin(BRIDGE.title, BRIDGE.question)
if not bridge.available(opened):
    components.empty(*bridge.WHY_EMPTY)
    st.stop()
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
    if bridge_queries.several(opened, controls.current()):
        controls.switch("pairing", "Null pairs with", bridge.PAIRINGS, only=tuple(bridge.PAIRINGS))
    with screen.popover("More of the bridge", icon=":material/tune:", key="bridge-rare"):
        controls.switch("intercept", "Coordinates", bridge.INTERCEPTS, help=bridge.INTERCEPT_HELP)
        controls.switch("space", "Subspace", bridge.SPACES, help=bridge.SPACE_HELP)
    controls.switch("parts", "Profile over blocks", {"shown": "shown", "hidden": "hidden"})

with components.guard("bridge: fit"):
    chosen = bridge_queries.effective(opened, controls.current())
    bridge_queries.prepare(opened, chosen, components.progress)
    hint = spaces.hint(opened, chosen)
    if hint is not None:
        screen.info(hint, icon=":material/lightbulb:")
    note = bridge.warning(opened, chosen)
    if note is not None:
        screen.warning(note, icon=":material/warning:")
    for panel in bridge.panels(opened, chosen):
        with components.guard(f"bridge: {panel.name}"):
            components.show(opened, panel)
