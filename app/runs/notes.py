"""Dated notes: those that are there, and a form for another one."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import access, screen
from app.escape import plain
from app.frame import parts as components
from app.frame.opened import Opened
from engine.errors import StoreError
from store.journal.notes import LONGEST, LONGEST_NAME, Note, NoteLog
from store.runs import RunLog

SHOWN = 20
"""Notes that are shown, the newest; the report has all of them."""
_KEPT = "note-kept"


def show(opened: Opened, run: str) -> None:
    """The notes of a store, newest first, and a form; a note is about the run that is open, where one is."""
    with components.guard("runs: notes"):
        notes, problems = NoteLog(opened.path).list()
        with screen.expander(f"Notes ({len(notes)})", icon=":material/edit_note:", expanded=bool(notes)):
            for problem in problems:
                screen.warning(plain(problem))
            _listed(notes)
            _form(opened, run)


def _listed(notes: Sequence[Note]) -> None:
    for one in sorted(notes, key=lambda note: note.note_id, reverse=True)[:SHOWN]:
        about = f", on run {one.run}" if one.run else ""
        screen.caption(
            plain(f"{one.created[:16].replace('T', ' ')} UTC, {one.author or 'nobody named'}{about}")
        )
        st.text(one.text)
    if len(notes) > SHOWN:
        screen.caption(f"And {len(notes) - SHOWN} older ones, which the report has.")


def _form(opened: Opened, run: str) -> None:
    if st.session_state.pop(_KEPT, False):  # a note that wasn't kept stays in the form
        st.session_state["note-text"] = ""
    with st.form("note", border=False):
        text = screen.text_area(
            f"A note on run {run}" if run else "A note", key="note-text", max_chars=LONGEST
        )
        author = screen.text_input("By", value=_author(), key="note-author", max_chars=LONGEST_NAME)
        sent = st.form_submit_button("Keep the note", icon=":material/save:")
    screen.caption(
        "It is kept in the store with its time, stands in the report, and can't be changed. "
        "On a run, #word tags it and #-word takes that away."
    )
    if sent:
        access.require("run")
        if not text.strip():
            raise StoreError(
                "There is no note to keep.", expected="a text", given="none", next_step="write something."
            )
        if run:
            RunLog(opened.path).open(run)
        NoteLog(opened.path).append(text, author, run)
        st.session_state[_KEPT] = True
        st.rerun()


def tag(opened: Opened, run: str, text: str) -> None:
    """Keeps a note on a run that tags it; StoreError where there is no such run."""
    access.require("run")
    RunLog(opened.path).open(run)
    NoteLog(opened.path).append(text, _author(), run)


def _author() -> str:
    """Who is logged in; "" on a dashboard without a login."""
    return str(st.user.get("email") or "")
