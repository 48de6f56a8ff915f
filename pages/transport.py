"""Transport maps: what one model's activation looks like in the other's space, and how well that is known."""

import streamlit as st

from app.frame import controls
from app.frame import parts as components
from app.patching import replacement as patch_view
from app.transport import panels as transport
from app.transport import places_view as transport_table_view
from app.transport import rare as map_rare
from app.transport import saved as saved_maps
from app.transport.analysis import TRANSPORT
from app.transport.fields import MapFields

opened = components.begin(TRANSPORT.title, TRANSPORT.question)
components.need_position(opened)
first, second, third, fourth = st.columns(4)
with first:
    controls.choose("target", "Direction (target ← source)", names=patch_view.directions(controls.current()))
with second:
    controls.choose("site", "Site", only=transport.SITES)
with third:
    controls.choose("position", "Token position")
with fourth:
    controls.choose("method", "Map", names=lambda m: transport.METHOD_NAMES[m], help=transport.METHOD_HELP)
uses = transport.uses(controls.current())

usable = False
with (
    components.guard("transport: parameters"),
    controls.row(),
):
    transport.check(opened, controls.current())
    controls.slide("layer", "Block ℓ")
    if "clusters" in uses:
        controls.slide("clusters", "Clusters (1: one map)")
    if "rank" in uses:
        controls.steps("rank", "Rank k", transport.ranks(opened), names=transport.rank_name)
    if "shrinkage" in uses:
        controls.slide("shrink", "Shrinkage γ", step=0.05)
    if "directions" in uses:
        controls.steps("q", "Logit directions q", transport.directions(opened, controls.current()))
    if "penalty" in uses:
        controls.switch("lam_mode", "Penalty", {"auto": "λ chosen on train", "set": "set λ"})
        if MapFields.of(controls.current()).lam_mode == "set":
            controls.slide("lam", "log₁₀ λ", step=0.25)
    map_rare.popover()
    usable = True

if usable:
    chosen = transport.effective(opened, controls.current())
    with components.guard("transport: panels"):
        for make in transport.PANELS:
            panel = make(opened, chosen)
            if panel is not None:
                components.show(opened, panel)
    with components.guard("transport: every place"):
        transport_table_view.section(opened, chosen)
    saved_maps.section(opened, chosen)
