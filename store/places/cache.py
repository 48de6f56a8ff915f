"""Pieces of files that were read from an object store, kept in memory up to a bound."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

__all__ = ["PIECES", "Pieces"]

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

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()
            self.held = 0


def _bound() -> int:
    try:
        return max(0, int(os.environ.get(MEGABYTES, USUAL))) << 20
    except ValueError:
        return USUAL << 20


PIECES = Pieces(_bound())
"""Of every store that this process reads."""
