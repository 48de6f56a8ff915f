"""Notes on the page Runs and in the report: shown as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamlit.testing.v1 import AppTest

from app.frame.blocks import Report, Text
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults
from app.report import build, html, markdown
from store.journal.notes import NoteLog
from store.reader import Store

Open = Callable[..., AppTest]
HOSTILE = "# Block 2 <script>alert(1)</script> [here](http://example.org) :smile:"


def chapter(path: Path) -> Report:
    store = Store(path)
    opened = Opened(str(path), store, read_facts(store))
    own = next(one for one in build.CHAPTERS if one.name == "notes")
    return Report("r", "", (), (build.section(own, opened, defaults(opened.facts)),))


def test_a_note_is_kept_shown_and_reported(open_app: Open, own_store: Path) -> None:
    """Nothing in it becomes a link, a tag or a heading."""
    assert "Nobody wrote a note" in chapter(own_store).sections[0].missing
    app = open_app(own_store, "runs")
    app.text_area(key="note-text").input(HOSTILE)
    app.text_input(key="note-author").input("Ada *L*")
    app.button[-1].click().run()
    assert not app.exception
    assert HOSTILE in [block.value for block in app.text]
    assert any("Ada \\*L\\*" in caption.value for caption in app.caption)
    (note,), problems = NoteLog(own_store).list()
    assert (note.text, note.author, note.run, problems) == (HOSTILE, "Ada *L*", "", [])
    made = chapter(own_store)
    written = html.render(made, {})
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert "<script>" not in written
    journal = next(d.decode() for name, d in markdown.files(made, {}).items() if name.endswith(".md"))
    assert "\\[here\\](http" in journal
    assert "\\<script>" in journal
    app.button[-1].click().run()
    said = " ".join(block.value for block in (*app.markdown, *app.error, *app.warning))
    assert "There is no note to keep" in said
    assert len(NoteLog(own_store).ids()) == 1


def test_a_note_that_is_not_kept_stays_in_the_form(open_app: Open, own_store: Path) -> None:
    """About a run that a link names and the store lacks; a kept one empties the form."""
    app = open_app(own_store, "runs", run="nosuchrun")
    app.text_area(key="note-text").input("A long text.")
    sent = next(button for button in app.button if button.label == "Keep the note")
    sent.click().run()
    assert not app.exception
    assert "There is no run" in " ".join(block.value for block in app.markdown)
    assert NoteLog(own_store).ids() == []
    assert app.text_area(key="note-text").value == "A long text."
    app = open_app(own_store, "runs")
    app.text_area(key="note-text").input("Kept.")
    next(button for button in app.button if button.label == "Keep the note").click().run()
    assert app.text_area(key="note-text").value == ""
    assert len(NoteLog(own_store).ids()) == 1


def test_a_damaged_note_is_told_beside_the_others(open_app: Open, own_store: Path) -> None:
    log = NoteLog(own_store)
    log.append("whole")
    damaged = log.append("other")
    (own_store / "notes" / f"{damaged.note_id}.json").write_text("{}")
    app = open_app(own_store, "runs")
    assert [block.value for block in app.text] == ["whole"]
    assert any("is damaged" in block.value for block in app.warning)
    assert [isinstance(block, Text) for block in chapter(own_store).sections[0].blocks] == [False, True]
