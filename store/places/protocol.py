"""What a store asks of the place that it lies in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from store.files import Bytes

Array = np.ndarray[Any, Any]
Stamp = tuple[int, int]
Span = tuple[str, int, int]
T = TypeVar("T")
R = TypeVar("R")


class Lock(Protocol):
    """A writer's hold on a store.

    Attributes:
        alone: whether no other writer is at work, so that leftovers may be removed.
    """

    alone: bool

    def share(self) -> None:
        """Lets other writers in, where the place can have several."""

    def alone_now(self) -> bool:
        """Whether no other writer is at work; if so, none begins before `share`."""

    def close(self) -> None:
        """Lets go."""


class Source(Protocol):
    """The files of one store, by path inside it ("tables/prompts.parquet").

    Attributes:
        local: the folder; None of an object store, where a file is created and never written over, but
            for the manifest and maps.
    """

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

    def written(self, path: str) -> dict[str, float]:
        """Every file below a folder by its path, with the POSIX time at which it was written."""

    def everything(self) -> list[str]:
        """Every file, hidden ones too, sorted."""

    def names(self) -> list[str]:
        """Names at the top, sorted; hidden ones too."""

    def write(self, path: str, parts: Iterable[Bytes], *, durable: bool = True) -> tuple[int, str]:
        """A whole file or nothing: (size in bytes, hex SHA-256). In an object store one of other bytes that
        is there already is another writer's, and refused; StoreError."""

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """A whole file in the place of what is there."""

    def remove(self, path: str) -> None:
        """Deletes a file; fine when it is already gone."""

    def lock(self) -> Lock:
        """A writer's hold; StoreError where another one has it and can't share it."""

    def settled(self) -> None:
        """The manifest that was read says that the store is complete: what it lists stays as it is."""

    def forget(self, paths: Iterable[str]) -> None:
        """These files were not as they should be: nothing that was kept of them is taken again."""

    def room(self, size: int) -> AbstractContextManager[None]:
        """Waits until a file of that many bytes may be read whole."""

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
        """`map` in order; several at a time where each waits for a network."""


def visible(paths: Iterable[str]) -> list[str]:
    """Those of no hidden file or folder, sorted."""
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.split("/")))
