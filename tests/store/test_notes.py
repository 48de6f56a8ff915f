"""Dated notes: kept whole or not at all, never changed, and looked after by verify."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from synthetic_store import write_all

import precompute
from engine.errors import StoreError
from store.files import seal
from store.journal.notes import LONGEST, Note, NoteLog
from store.journal.tags import tags_of
from store.manifest import verify
from store.provenance import fingerprint_at
from store.runs import RunLog
from store.sources import open_source


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_all(tmp_path / "store")
    return tmp_path / "store"


def test_notes_come_back_in_order_with_who_and_when(store: Path) -> None:
    before = datetime.now(UTC)
    log = NoteLog(store)
    first = log.append("  Block 2 looks right.\nAgain with 答.  ", "Ada  Lovelace", "0123456789abcdef")
    second = log.append("Block 2 looks right.")
    notes, problems = NoteLog(store).list()
    assert (notes, problems) == ([first, second], [])
    assert first.text == "Block 2 looks right.\nAgain with 答."
    assert (first.author, first.run) == ("Ada Lovelace", "0123456789abcdef")
    assert (second.author, second.run) == ("", "")
    assert abs((datetime.fromisoformat(first.created) - before).total_seconds()) < 60
    assert verify(store) == []


@pytest.mark.parametrize("text", ["", " \n", "a" * (LONGEST + 1)])
def test_what_is_no_note_is_refused(store: Path, text: str) -> None:
    with pytest.raises(StoreError, match="not kept"):
        NoteLog(store).append(text)
    assert not (store / "notes").exists()


@pytest.mark.parametrize("text", ["a\udcffb", "a\x1b[31mred", "a\u202eb", "\x00", "a\x9bb"])
def test_what_a_terminal_would_obey_is_refused(store: Path, text: str) -> None:
    for fields in ((text,), ("a word", text), ("a word", "", text)):
        with pytest.raises(StoreError, match=r"nobody can read.*\\(x|u)"):
            NoteLog(store).append(*fields)
    assert not (store / "notes").exists()
    kept = NoteLog(store).append("a\r\nb\tc\rd \u200d 答 é")
    assert kept.text == "a\nb\tc\nd \u200d 答 é", "line breaks, tabs, joiners and other scripts are text"


def test_an_old_note_is_printed_without_what_a_terminal_would_obey(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"created": "2024-07-26T00:00:00+00:00", "author": "\x1b]0;Eve\x07", "run": "\x1b[2J"}
    (store / "notes").mkdir()
    data = seal(record | {"text": "a\x1b[31mred\u202e\nb", "store": fingerprint_at(open_source(store))})
    (store / "notes/20240726T000000000000-01234567.json").write_bytes(data)
    (store / "notes/\x1b[31mbad.json").write_text("{}")
    assert precompute.main(["note", str(store)]) == 1
    said = capsys.readouterr()
    assert not re.search("[\x1b\x07\u202e]", said.out + said.err)
    assert "\\x1b]0;Eve\\x07 (run \\x1b[2J)\na\\x1b[31mred\\u202e\nb\n" in said.out
    assert "\\x1b[31mbad.json is damaged" in said.err


def test_changed_and_foreign_notes_are_found(store: Path, tmp_path: Path) -> None:
    log = NoteLog(store)
    kept, changed = log.append("one"), log.append("two")
    file = store / "notes" / f"{changed.note_id}.json"
    file.write_bytes(file.read_bytes().replace(b"two", b"six"))
    (store / "notes/other.txt").write_text("?")
    other = tmp_path / "other"
    write_all(other)
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["fingerprint"] == json.loads((other / "manifest.json").read_text())["fingerprint"]
    notes, problems = log.list()
    assert notes == [kept]
    assert "is damaged" in problems[0]
    assert [p.array for p in verify(store)] == [f"notes/{changed.note_id}", "notes/other.txt"]


def test_a_writer_that_is_killed_leaves_whole_notes(store: Path) -> None:
    """Killed between notes at any moment, every note that shows is whole."""
    code = (
        "import sys; from store.journal.notes import NoteLog\n"
        "log = NoteLog(sys.argv[1])\n"
        "for i in range(100000):\n    log.append(f'note {i} ' + 'x' * 10000); print(i, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    notes, problems = NoteLog(store).list()
    assert problems == []
    assert len(notes) >= 20
    assert [note.text.split()[1] for note in notes] == [str(i) for i in range(len(notes))]


def test_the_command_keeps_and_prints_notes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert precompute.main(["note", str(store), "A word.", "--author", "Ada"]) == 0
    assert precompute.main(["note", str(store)]) == 0
    said = capsys.readouterr().out
    assert said.endswith(" Ada\nA word.\n\n")
    assert precompute.main(["note", str(store), "About a run.", "--run", "0123456789abcdef"]) == 1
    assert "There is no run" in capsys.readouterr().err
    assert precompute.main(["note", str(store), "--run", "0123456789abcdef", "About a run."]) == 1
    assert "There is no run" in capsys.readouterr().err
    assert precompute.main(["note", str(store), "a\udcffb"]) == 1
    assert "nobody can read" in capsys.readouterr().err
    assert precompute.main(["note", str(store / "nothing"), "A word."]) == 1
    table = pl.DataFrame({"id": ["p0", "p1"], "kl": [0.25, None]})
    run = RunLog(store).append({"job": "patch", "layer": 1}, {"kl": 0.5}, table)
    assert precompute.main(["note", str(store), "--run", run, "About it.", "--author", "Ada"]) == 0
    kept = NoteLog(store).list()[0]
    assert [(one.text, one.run) for one in kept] == [("A word.", ""), ("About it.", run)]


def test_tags_of_runs_are_words_of_their_notes() -> None:
    def note(text: str, run: str = "r") -> Note:
        return Note("", "", "", text, run)

    assert tags_of([note("#Figure2, (#keep) #a-b and #图1.")]) == {"r": ("figure2", "keep", "a-b", "图1")}
    assert tags_of([note("#keep #wrong"), note("#-wrong")]) == {"r": ("keep",)}
    assert tags_of([note("#-keep"), note("#keep")]) == {"r": ("keep",)}, "what was taken away can come again"
    assert tags_of([note("#keep"), note("#-keep")]) == {}
    assert tags_of([note("C#, issue#4, # 5, #, a/#b, ##c"), note("#here", run="")]) == {}
