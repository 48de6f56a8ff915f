"""Live patching: replace one activation of one model by another's and see what the next token does."""

import streamlit as st

from app import components, controls, live_view, patch_view
from app.selection import KINDS, SITES

opened = components.begin(
    "Patching",
    "What happens to one model's next token when the activation at one site is replaced by the other's?",
)
allowed = patch_view.patch_positions(opened.facts.positions)
if not allowed:
    components.empty(*patch_view.WHY_EMPTY)
    st.stop()
controls.pair_controls()
first, second, third = st.columns(3)
with first:
    controls.choose("target", "Direction (target ← source)", names=patch_view.directions(controls.current()))
    controls.choose("site", "Site", only=SITES)
with second:
    controls.choose("position", "Patched token", only=allowed)
    controls.slide("layer", "Block ℓ")
with third:
    controls.choose("kind", "Replacement", KINDS, lambda k: patch_view.KIND_NAMES[k], patch_view.KIND_HELP)
    controls.slide("alpha", "Amplitude α", step=0.05)
controls.filter_controls("report")
with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
    controls.switch("amplitude", "α scales", {"vector": "the vector", "deviation": "deviation"})
    controls.switch("read_at", "Read at", {"patched": "patched token", "decision": "decision token"})
    controls.switch("alphas", "Amplitudes", {"one": "this α", "curve": "0 to 2"})
    controls.switch("layers", "Blocks", {"one": "this block", "every": "every block"})

chosen = controls.current()
with components.guard("patching: condition"):
    condition = patch_view.condition_of(chosen)
    wanted = patch_view.conditions(opened, chosen)
    missing = [c for c in wanted if live_view.stored(opened, c) is None]
    text = "Run every block" if chosen.layers == "every" else "Run"
    live_view.run_button(opened, missing, text, done=not missing)
    live_view.watch()
    result = live_view.stored(opened, condition)
    code = patch_view.code(opened.path, condition)
    if result is None and not live_view.active():
        components.empty(*patch_view.not_run(condition, opened.store.manifest))
    if result is not None:
        components.show(opened, patch_view.histogram_panel(result, chosen.alpha, code))
        for note in result.summary.get("notes", []):
            st.caption(components.plain(note))
        curve = patch_view.alpha_panel(result, chosen.alpha, code)
        if curve is not None:
            components.show(opened, curve)
    profile = patch_view.profile(live_view.runs_of(opened), condition, chosen.alpha)
    layers = patch_view.layer_panel(profile, condition, chosen.alpha, code)
    if layers is not None:
        components.show(opened, layers)
    if result is not None:
        components.tokens(patch_view.token_table(result.table, chosen.alpha))
