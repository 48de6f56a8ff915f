"""The map at every site and block on the page: at once for small stores, at a click for large ones."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import parts as components
from app.frame import words
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.transport import panels as transport
from app.transport import places as transport_table
from app.transport import tables as tq

NAMES = {
    "r2_train": "R² train",
    "r2_validation": "R² validation",
    "r2_low": "95 % from",
    "r2_high": "to",
    "r2_shuffled": "R² wrong pairs",
    "r2_shuffled_max": "largest",
    "cka_raw": "CKA raw",
    "cka_raw_debiased": "CKA raw, debiased",
    "cka_mapped": "CKA mapped",
    "cka_mapped_debiased": "CKA mapped, debiased",
    "cka_null_low": "null from",
    "cka_null_high": "null to",
    "cosine": "cosine",
    "cosine_deviation": "cosine of deviations",
    "alpha_vector": "α, vector",
    "alpha_deviation": "α, deviation",
    "fallback_rate": "fallback",
}
CONFIG: dict[str, Any] = {
    name: st.column_config.NumberColumn(text, format="%.3f") for name, text in NAMES.items()
}
"""How the page shows the columns."""


def section(opened: Opened, selection: Selection) -> None:
    """Draw the heatmap and the table, or the button that computes them."""
    place, spec = tq.Place.of(selection), tq.spec_of(selection)
    table = transport_table.known(opened.store, place, spec)
    count = len(tq.places(opened.store, place))
    if table is None and screen.button(
        f"Fit this map at all {count} places",
        icon=":material/grid_on:",
        type="primary",
        key="map-everywhere",
        help="The result is kept in the study.",
    ):
        transport_table.compute(opened.store, place, spec, components.progress)
        st.rerun()
    if table is None:
        screen.caption(f"{plain(words.sentence(spec.describe()))}: not fitted at every site and block yet.")
        return
    components.show(opened, transport.table_panel(opened, selection))
    with screen.expander("All scores, place by place", icon=":material/table:"):
        screen.dataframe(table, hide_index=True, width="stretch", column_config=CONFIG)
