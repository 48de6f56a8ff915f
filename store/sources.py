"""Where a store's bytes are read from: a local folder, or any URL that fsspec knows."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import StoreError
from store.files import entries_below, storage_errors

Array = np.ndarray[Any, Any]
Stamp = tuple[int, int]
Span = tuple[str, int, int]
_THREAD = threading.local()
COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""A URL that went through `Path`, which makes one slash of two."""


class Source(Protocol):
    """Read access to the files of one store, by path inside it ("tables/prompts.parquet")."""

    name: str
    local: Path | None

    def read(self, path: str) -> bytes | None:
        """A whole file, or None when there is none."""

    def stamp(self, path: str) -> Stamp | None:
        """(size in bytes, something that changes when the file is replaced), or None."""

    def spans(self, spans: Sequence[Span]) -> Iterator[Array]:
        """(path, offset, length) pieces of files as uint8; a piece lives until this thread reads again."""

    def walk(self, path: str) -> list[str]:
        """Every file below a folder, by path inside it, sorted; hidden ones left out."""


class LocalSource:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)
        self.local: Path | None = root

    def read(self, path: str) -> bytes | None:
        full = self.root / path
        with storage_errors(full, "read"):
            try:
                # A pipe in a file's place would let the reader wait for ever.
                handle = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                return None
            with open(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise OSError(errno.EINVAL, "not a file")
                return file.read()

    def stamp(self, path: str) -> Stamp | None:
        try:
            status = os.stat(f"{self.name}/{path}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                return None
            with storage_errors(self.root / path, "read"):
                raise
        if not stat.S_ISREG(status.st_mode):
            return None
        return status.st_size, status.st_mtime_ns

    def spans(self, spans: Sequence[Span]) -> Iterator[Array]:
        buffer = _buffer(max((length for _, _, length in spans), default=0))
        for path, pieces in groupby(spans, lambda span: span[0]):
            full = f"{self.name}/{path}"
            try:
                handle = os.open(full, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    for _, offset, length in pieces:
                        piece = buffer[:length]
                        yield piece[: os.preadv(handle, [piece.data], offset)]
                finally:
                    os.close(handle)
            except OSError as error:
                with storage_errors(Path(full), "read"):
                    raise error

    def walk(self, path: str) -> list[str]:
        full = self.root / path
        files = (found.relative_to(full) for found in entries_below(full) if found.is_file())
        return _visible(found.as_posix() for found in files)


class UrlSource:
    """A prefix of an object store or another file system, read through fsspec ("s3://...", "memory://...").

    Sizes are asked for once: a store at a URL is taken as finished.
    """

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self.local: Path | None = None
        self._stamps: dict[str, Stamp] = {}
        scheme = url.split("://", maxsplit=1)[0]
        try:
            from fsspec.core import url_to_fs

            self.files, self.root = url_to_fs(self.name)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(
                f"The store at {url} cannot be opened.",
                expected="a local folder, or a URL whose protocol fsspec knows",
                given=f"{scheme}:// ({error})",
                next_step="Run pip install 'patchbay[s3]', or copy the store to a local folder.",
            ) from error
        self.root = self.root.rstrip("/")

    def read(self, path: str) -> bytes | None:
        try:
            return bytes(self.files.cat_file(f"{self.root}/{path}"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def stamp(self, path: str) -> Stamp | None:
        if path not in self._stamps:
            try:
                self._stamps[path] = int(self.files.info(f"{self.root}/{path}")["size"]), 0
            except FileNotFoundError:
                return None
        return self._stamps[path]

    def spans(self, spans: Sequence[Span]) -> Iterator[Array]:
        paths, starts = [f"{self.root}/{path}" for path, _, _ in spans], [start for _, start, _ in spans]
        ends = [start + length for _, start, length in spans]
        with storage_errors(Path(self.root), "read"):
            pieces = self.files.cat_ranges(paths, starts, ends, on_error="raise")
        for piece in pieces:
            yield np.frombuffer(piece, np.uint8)

    def walk(self, path: str) -> list[str]:
        full = f"{self.root}/{path}"
        try:
            found = self.files.find(full)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return _visible(name.split(f"{full.strip('/')}/", 1)[-1] for name in found)


def _buffer(size: int) -> Array:
    """This thread's read buffer: fresh memory for every read would cost more than the read itself."""
    kept: Array | None = getattr(_THREAD, "buffer", None)
    if kept is None or len(kept) < size:
        kept = _THREAD.buffer = np.empty(size, np.uint8)
    return kept


def _visible(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.split("/")))


def as_place(text: str) -> str | Path:
    """A store's place as it was typed: a URL stays a text, since a path loses one of its slashes."""
    return text if "://" in text else Path(text)


def to_write(path: str | Path, what: str = "A store") -> Path:
    """The local folder or file at `path`, which is going to be written.

    Args:
        what: what is written, for the message.

    Raises:
        StoreError: a URL, also one that was made a path ("s3:/bucket"): it would become a folder named "s3:".
    """
    text = str(path).removeprefix("file://")
    if "://" in text or COLLAPSED.match(text):
        raise StoreError(
            f"{what} is written to a local folder.",
            expected="a path",
            given=str(path),
            next_step="Write it to a local folder, then copy the folder to the object store.",
        )
    return Path(text)


def open_source(path: str | Path) -> Source:
    """A folder or a URL as a `Source`."""
    text = str(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return UrlSource(text) if "://" in text else LocalSource(to_write(text))
