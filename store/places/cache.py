"""What is read from object stores is kept in memory, and held at the same time, up to bounds."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["PIECES", "ROOM", "Pieces", "Room"]

MEGABYTES = "PATCHBAY_CACHE_MB"
"""Variable of the environment that sets the bound."""
USUAL = 512


class Pieces:
    """Bytes by a key, the ones least lately asked for given up first.

    Args:
        most: bytes in all.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """What is kept under a key, None where nothing is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, data: Any) -> None:
        """Keeps a piece, if it isn't larger than a quarter of all."""
        if len(data) > self.most // 4:
            return
        with self._lock:
            old = self._kept.pop(key, None)
            self.held += len(data) - (0 if old is None else len(old))
            self._kept[key] = data
            while self.held > self.most:
                self.held -= len(self._kept.popitem(last=False)[1])

    def drop(self, which: Callable[[Any], bool]) -> None:
        """Forgets what is kept under the keys that `which` says."""
        with self._lock:
            for key in [key for key in self._kept if which(key)]:
                self.held -= len(self._kept.pop(key))

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()
            self.held = 0


class Room:
    """Bytes that several threads may hold at the same time; a larger piece waits until it is alone.

    Args:
        most: bytes in all.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Waits for room for `size` bytes, and gives it back behind the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self.held or self.held + size <= self.most)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()


def _bound() -> int:
    try:
        return max(0, int(os.environ.get(MEGABYTES, USUAL))) << 20
    except ValueError:
        return USUAL << 20


PIECES = Pieces(_bound())
"""Of every store that this process reads."""
ROOM = Room(1 << 30)
"""Of files that are looked through whole."""
