"""Subspace scores: which named subspace of the stream a weight change uses, and how far above chance."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls, page
from app.frame import parts as components
from app.frame import running as live_view
from app.subspaces import view as subspaces_view
from app.subspaces.analysis import SUBSPACES

opened = components.begin(SUBSPACES.title, SUBSPACES.question, pair=False)
if not subspaces_view.can_score(opened):
    components.empty(*subspaces_view.NOTHING)
    if opened.can_run:
        st.code(subspaces_view.SNIPPET, language="toml", wrap_lines=True)
    st.stop()
subspaces_view.broad_control(opened)

chosen = controls.current()
page.warn(SUBSPACES, opened, chosen)
with components.guard("subspace scores: runs"):
    wanted = subspaces_view.experiment_of(opened, chosen)
    found = subspaces_view.stored(opened, wanted, chosen.run)
    if found is None:
        live_view.rejoin(opened, wanted)
    done = subspaces_view.is_stored(opened, wanted)
    live_view.run_button(opened, [wanted], "Score all candidates", done=done)
    live_view.watch()
    if found is None and not live_view.active():
        components.empty(*subspaces_view.not_run(opened, wanted))
    if found is not None:
        subspaces_view.score_controls(found)
        subspaces_view.show(opened, subspaces_view.shown_of(opened, found, chosen))
        for note in found.summary["notes"]:
            screen.caption(plain(note))
