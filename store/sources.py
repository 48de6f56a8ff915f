"""Opens the place that a store lies in: a local folder, or a URL of an object store."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from engine.errors import StoreError
from store.files import TEMPORARY
from store.places.client import shown
from store.places.local import LocalSource
from store.places.objects import ObjectSource
from store.places.protocol import Lock, Source, Span, Stamp

__all__ = [
    "LocalSource",
    "Lock",
    "Source",
    "Span",
    "Stamp",
    "as_place",
    "check_writable",
    "open_source",
    "to_write",
]

COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""A URL that went through `Path`, which makes one slash of two."""


def as_place(place: str | Path) -> str | Path:
    """A store's place as it was typed: a folder, file:// or not, as a path; the URL of an object store as a
    text, since a path loses one of its slashes."""
    text = str(place).removeprefix("file://")
    return text if "://" in text else Path(text)


def to_write(path: str | Path, what: str = "A store") -> Path:
    """The local folder or file at `path`, which is going to be written.

    Args:
        what: what is written, for the message.

    Raises:
        StoreError: a URL, also one that was made a path ("s3:/bucket"): it would become a folder named "s3:".
    """
    text = str(as_place(path))
    if "://" in text or COLLAPSED.match(text):
        raise StoreError(
            f"{what} is written to a local folder.",
            expected="a path",
            given=shown(text),
            next_step="Choose a local folder. The URL of a store has two slashes: s3://…",
        )
    return Path(text)


def open_source(path: str | Path, *, fresh: bool = False) -> Source:
    """A folder or a URL as a `Source`.

    Args:
        fresh: of a URL, keep nothing of what is read and take nothing that was kept.

    Raises:
        StoreError: a URL that isn't an object store's, or one that went through `Path`.
    """
    place = as_place(path)
    return ObjectSource(place, fresh=fresh) if isinstance(place, str) else LocalSource(to_write(place))


def check_writable(source: Source) -> None:
    """StoreError for an object store that takes no objects. Asked before anything is computed."""
    if source.local is None:
        probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        source.write(probe, [b""])
        source.remove(probe)
