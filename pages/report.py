"""Report: the whole study of a pair as one HTML file and as a Markdown journal."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import parts as components
from app.report import page

opened = components.begin(
    "Report",
    "Everything that this store says about a pair, as one file to keep, to print and to paste from.",
)
chosen = controls.current()
screen.caption(page.about(chosen))

with components.guard("report: make"):
    made = page.made(opened, chosen)
    text = "Make the report" if made is None else "Make it again"
    if screen.button(text, icon=":material/summarize:", type="primary", key="make-report", width="stretch"):
        made = page.make(opened, chosen)
    if made is None:
        components.empty(*page.NOT_MADE)
        st.stop()
    left, right = st.columns(2)
    with left:
        screen.download_button(
            f"HTML, {made.size}",
            made.html,
            file_name=f"{made.name}.html",
            mime="text/html",
            icon=":material/download:",
            key="report-html",
            on_click="ignore",
            width="stretch",
        )
    with right:
        screen.download_button(
            "Markdown with figures and data (zip)",
            made.journal,
            file_name=f"{made.name}.zip",
            mime="application/zip",
            icon=":material/download:",
            key="report-zip",
            on_click="ignore",
            width="stretch",
        )
    screen.caption(plain(made.said))
    for table in made.previews:
        screen.markdown(f"#### {plain(table.title)}")
        screen.dataframe(table.read, hide_index=True, width="stretch")
        screen.caption(plain(table.caption))
    screen.markdown("#### Contents")
    screen.markdown(page.contents(made.report))
    screen.caption("Without a browser, for this pair under the usual settings:")
    st.code(page.command(opened, chosen), language="bash", wrap_lines=True)
