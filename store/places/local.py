"""A store in a folder of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path

import numpy as np

from store.files import Bytes, atomic_write, entries_below, remove_file, storage_errors
from store.places.protocol import Array, R, Span, Stamp, T, visible

LOCK = ".writer.lock"
_THREAD = threading.local()


class FolderLock:
    """A lock on a store's folder (`store.places.protocol.Lock`): one writer alone, or several."""

    def __init__(self, root: Path) -> None:
        self._root, self.alone = root, True
        with storage_errors(root / LOCK):
            self._handle = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self._handle, fcntl.LOCK_SH)
                self.alone = False

    def share(self) -> None:
        """Lets other writers in."""
        with storage_errors(self._root / LOCK):
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def alone_now(self) -> bool:
        """Whether no other writer is at work; if so, none begins before `share`."""
        with storage_errors(self._root / LOCK):
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.share()
                return False
        return True

    def close(self) -> None:
        """Lets go."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


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
        return visible(found.as_posix() for found in files)

    def written(self, path: str) -> dict[str, float]:
        found = (file for file in entries_below(self.root / path) if file.is_file())
        return {file.relative_to(self.root).as_posix(): file.stat().st_mtime for file in found}

    def everything(self) -> list[str]:
        found = (
            path for path in entries_below(self.root) if path.is_file() or path.is_symlink() or path.is_fifo()
        )
        return [path.relative_to(self.root).as_posix() for path in found]

    def names(self) -> list[str]:
        with storage_errors(self.root, "read"):
            try:
                return sorted(os.listdir(self.root))
            except FileNotFoundError:
                return []

    def write(self, path: str, parts: Iterable[Bytes], *, durable: bool = True) -> tuple[int, str]:
        return atomic_write(self.root / path, parts, durable=durable)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        atomic_write(self.root / path, [data], durable=durable)

    def remove(self, path: str) -> None:
        remove_file(self.root / path)

    def lock(self) -> FolderLock:
        return FolderLock(self.root)

    def settled(self) -> None:
        """Nothing is kept: a file is looked at anew each time."""

    def forget(self, paths: Iterable[str]) -> None:
        """Nothing is kept."""

    def room(self, size: int) -> AbstractContextManager[None]:
        return nullcontext()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
        return map(function, items)


def _buffer(size: int) -> Array:
    """This thread's read buffer: fresh memory for every read would cost more than the read itself."""
    kept: Array | None = getattr(_THREAD, "buffer", None)
    if kept is None or len(kept) < size:
        kept = _THREAD.buffer = np.empty(size, np.uint8)
    return kept
