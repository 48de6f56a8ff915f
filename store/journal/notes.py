"""Dated notes, kept in the store that they are about; nothing changes or removes one.

    notes/<time>-<hash>.json    text, author, time, the run it is about, its store; sealed

A note appears whole, so a torn write is never seen, and two writers have a file each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine.errors import StoreError
from store.files import seal, sha256, unseal
from store.places.client import UnreachableError
from store.provenance import fingerprint_at
from store.schema import NoteRecord, check
from store.sources import Source, open_source

NOTES = "notes"
SUFFIX = ".json"
LONGEST = 20_000
"""Characters of a note; of its author's name `LONGEST_NAME`."""
LONGEST_NAME = 200
NEXT = "It can be deleted; the other notes stay as they are."


_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, those that turn text round, and halves of characters."""


def readable(text: str) -> str:
    """A text with the codes of its control characters in their places: "\\x1b" for an escape.

    A terminal obeys such characters, and no file can hold a half of one.
    """
    return _UNREADABLE.sub(lambda found: ascii(found[0])[1:-1], text)


@dataclass(frozen=True)
class Note:
    """One note. `created`: ISO time in UTC. `author`, `run`: "" where nobody, or no run, is named."""

    note_id: str
    created: str
    author: str
    text: str
    run: str = ""


_NOTES: dict[tuple[str, str, str] | None, Note] = {}
"""Notes at URLs that this process has read, by URL, store and id."""


class NoteLog:
    """The notes of the store at `path`, a folder or a URL."""

    def __init__(self, path: str | Path) -> None:
        self.source: Source = open_source(path)

    def append(self, text: str, author: str = "", run: str = "") -> Note:
        """Keeps a note, now.

        Args:
            text: any text. author: who writes it. run: the id of the run that it is about.

        Raises:
            StoreError: no text, one that is too long or has control characters, disk full, or a place that
                can't be written to.
        """
        text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
        author = " ".join(author.split())
        for given in (text, author, run):
            if (shown := readable(given)) != given:
                raise StoreError(
                    "This note is not kept: it has characters that nobody can read.",
                    expected="text, line breaks and tabs",
                    given=", ".join(dict.fromkeys(readable(c) for c in given if readable(c) != c)),
                    next_step=f"leave them out: {shown[:100]}",
                )
        if not text or len(text) > LONGEST or len(author) > LONGEST_NAME:
            raise StoreError(
                "This note is not kept.",
                expected=f"1 to {LONGEST} characters, and at most {LONGEST_NAME} of a name",
                given=f"{len(text)} characters, a name of {len(author)}",
                next_step="write something, or put a long text into a file and name it in the note.",
            )
        now = datetime.now(UTC)
        record = {
            "created": now.isoformat(timespec="milliseconds"),
            "author": author,
            "text": text,
            "run": run,
            "store": fingerprint_at(self.source),
        }
        data = seal(record)
        note_id = f"{now:%Y%m%dT%H%M%S%f}-{sha256(data)[:8]}"
        self.source.write(f"{NOTES}/{note_id}{SUFFIX}", [data])
        return self.open(note_id)

    def ids(self) -> list[str]:
        """Ids of notes, oldest first; those of damaged ones too."""
        return sorted(p.removesuffix(SUFFIX) for p in self.source.walk(NOTES) if self._is_note(p))

    def open(self, note_id: str) -> Note:
        """A note, in which control characters stand as their codes (`readable`).

        Raises:
            StoreError: it is damaged, or of another store.
        """
        name = f"{self.source.name}/{NOTES}/{note_id}{SUFFIX}"
        data = self.source.read(f"{NOTES}/{note_id}{SUFFIX}")
        record = check(NoteRecord, unseal(data or b"", name, NEXT), name, NEXT)
        if record.store != fingerprint_at(self.source):
            raise StoreError(
                f"{name} is of another store.",
                expected=f"a note of the store {fingerprint_at(self.source)[:12]}",
                given=f"one of the store {record.store[:12]}",
                next_step=NEXT,
            )
        said = map(readable, (note_id, record.created, record.author, record.text, record.run))
        return Note(*said)

    def list(self) -> tuple[list[Note], list[str]]:
        """The notes that are whole, oldest first, and what is wrong with others."""
        found = list(self.source.map(self._kept, self.ids()))
        return [n for n in found if isinstance(n, Note)], [n for n in found if isinstance(n, str)]

    def _kept(self, note_id: str) -> Note | str:
        """A note, or what is wrong with it; at a URL from memory where it was read once: none changes."""
        try:
            place = None if self.source.local else (self.source.name, fingerprint_at(self.source), note_id)
            note = _NOTES.get(place)
            if note is None:
                note = self.open(note_id)
                if place is not None:
                    _NOTES[place] = note
            return note
        except UnreachableError:
            raise
        except StoreError as error:
            return str(error)

    def strays(self) -> Iterator[str]:
        """Files below notes/ that are no note, by path inside it."""
        return (path for path in self.source.walk(NOTES) if not self._is_note(path))

    def _is_note(self, path: str) -> bool:
        return "/" not in path and path.endswith(SUFFIX)
