"""Where a store's bytes are read from: a local folder, or any URL that fsspec knows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import StoreError
from store.files import storage_errors

Array = np.ndarray[Any, Any]
Stamp = tuple[int, int]
_THREAD = threading.local()


class Source(Protocol):
    """Read access to the files of one store, by path inside it ("tables/prompts.parquet")."""

    name: str
    local: Path | None

    def read(self, path: str) -> bytes | None:
        """A whole file, or None when there is none."""

    def stamp(self, path: str) -> Stamp | None:
        """(size in bytes, something that changes when the file is replaced), or None."""

    def spans(self, path: str, spans: list[tuple[int, int]]) -> Iterator[Array]:
        """(offset, length) pieces of one file as uint8; a piece lives until this thread reads again."""

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
                return full.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stamp(self, path: str) -> Stamp | None:
        try:
            status = os.stat(f"{self.name}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size, status.st_mtime_ns

    def spans(self, path: str, spans: list[tuple[int, int]]) -> Iterator[Array]:
        full = f"{self.name}/{path}"
        buffer = _buffer(max((length for _, length in spans), default=0))
        try:
            handle = os.open(full, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for offset, length in spans:
                    piece = buffer[:length]
                    yield piece[: os.preadv(handle, [piece.data], offset)]
            finally:
                os.close(handle)
        except OSError as error:
            with storage_errors(Path(full), "read"):
                raise error

    def walk(self, path: str) -> list[str]:
        full = self.root / path
        files = (found.relative_to(full) for found in full.rglob("*") if found.is_file())
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
        except (ImportError, ValueError) as error:
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

    def spans(self, path: str, spans: list[tuple[int, int]]) -> Iterator[Array]:
        full = f"{self.root}/{path}"
        starts, ends = [start for start, _ in spans], [start + length for start, length in spans]
        for piece in self.files.cat_ranges([full] * len(spans), starts, ends):
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


def open_source(path: str | Path) -> Source:
    """A folder or a URL as a `Source`."""
    text = str(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return UrlSource(text) if "://" in text else LocalSource(Path(text))
