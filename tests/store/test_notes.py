"""Dated notes: kept whole or not at all, never changed, and looked after by verify."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from synthetic_store import write_all

import precompute
from engine.errors import StoreError
from store.journal.notes import LONGEST, NoteLog
from store.manifest import verify


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
    assert precompute.main(["note", str(store / "nothing"), "A word."]) == 1
    assert len(NoteLog(store).list()[0]) == 1
