"""Live patching: replace one activation of one model by another's and see what the next token does."""

import streamlit as st

from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.patching import view as patch_page
from app.patching.analysis import PATCHING

opened = components.begin(PATCHING.title, PATCHING.question)
if not opened.facts.tokens:
    components.empty(*live_view.WHY_NO_TOKEN)
    st.stop()
if controls.switch("patch", "View", {"table": "Raw vs mapped", "one": "One replacement"}) == "table":
    patch_page.table(opened)
else:
    patch_page.one(opened)
