"""About this study: the study file, provenance, and what the numbers mean."""

import streamlit as st

from app import screen
from app.frame import parts as components
from app.overview import panels as overview
from app.overview.analysis import ABOUT

opened = components.begin(ABOUT.title, ABOUT.question, blocking=False, pair=False)
provenance, study, meaning, reading = screen.tabs(
    ["Provenance", "Study file", "What the numbers mean", "Open it elsewhere"]
)
with provenance:
    screen.dataframe(overview.provenance(opened), hide_index=True, width="stretch", height=560)
with study:
    screen.caption(
        "As recorded in the manifest; everything that changes a number is part of the fingerprint."
    )
    st.code(overview.study_text(opened), language="json", wrap_lines=True)
with meaning:
    for title, text in overview.MEANINGS:
        screen.markdown(f"**{title}**")
        screen.markdown(text)
with reading:
    screen.markdown(
        "The store is a Zarr v3 group with Parquet tables; no model and no part of this project is "
        "needed to read it."
    )
    st.code(overview.reading_code(opened), language="python", wrap_lines=True)
    screen.dataframe(overview.arrays(opened), hide_index=True, width="stretch", height=420)
