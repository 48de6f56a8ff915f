"""The map at every site and block on the page: at once for small stores, at a click for large ones."""

from __future__ import annotations

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


def section(opened: Opened, selection: Selection) -> None:
    """Draw the heatmap and the table, or the button that computes them."""
    place, spec = tq.Place.of(selection), tq.spec_of(selection)
    table = transport_table.known(opened, place, spec)
    count = len(tq.places(opened, place))
    if table is None and screen.button(
        f"Fit this map at all {count} places",
        icon=":material/grid_on:",
        type="primary",
        key="map-everywhere",
        help="The result is kept in the study.",
    ):
        transport_table.compute(opened, place, spec, components.progress)
        st.rerun()
    if table is None:
        screen.caption(f"{plain(words.sentence(spec.describe()))}: not fitted at every site and block yet.")
        return
    components.show(opened, transport.table_panel(opened, selection, table))
    with screen.expander("All scores, place by place", icon=":material/table:"):
        screen.dataframe(table, hide_index=True, width="stretch", column_config=transport_table.CONFIG)
