"""About this study: the study file, provenance, and what the numbers mean."""

import streamlit as st

from app import components, overview

opened = components.begin(
    "About this study",
    "How these numbers were made, and how to read the same store without this dashboard.",
    blocking=False,
)
provenance, study, meaning, reading = st.tabs(
    ["Provenance", "Study file", "What the numbers mean", "Open it elsewhere"]
)
with provenance:
    st.dataframe(overview.provenance(opened), hide_index=True, width="stretch", height=560)
with study:
    st.caption("As recorded in the manifest; everything that changes a number is part of the fingerprint.")
    st.code(overview.study_text(opened), language="json")
with meaning:
    for title, text in overview.MEANINGS:
        st.markdown(f"**{title}**")
        st.markdown(text)
with reading:
    st.markdown(
        "The store is a Zarr v3 group with Parquet tables; no model and no part of this project is "
        "needed to read it."
    )
    st.code(overview.reading_code(opened), language="python")
    st.dataframe(overview.arrays(opened), hide_index=True, width="stretch", height=420)
