"""The place that a store is begun in: made, or refused before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from engine.errors import StoreError
from store.files import TEMPORARY, storage_errors
from store.layout import MANIFEST
from store.places.local import LOCK
from store.plan import StorePlan
from store.sources import Source

__all__ = ["BEFORE", "LOCK", "check_room", "make_folder"]

BEFORE = ".before-"
"""Files of this prefix are made before the store is begun; no writer takes them for leftovers."""
TYPICAL_RATIO = 0.6  # what activations have compressed to at best; only to refuse a hopeless start


def make_folder(source: Source, ours: Callable[[], bool]) -> bool:
    """Makes the folder; True when it was not there. One with other things in it is not written into.

    Args:
        ours: whether a folder without a manifest is what is left of this very store.
    """
    if source.local is not None:
        with storage_errors(source.local):
            try:
                source.local.mkdir(parents=True)
                return True
            except FileExistsError:
                found = sorted(os.listdir(source.local))
    else:
        found = source.names()
    if MANIFEST in found or ours():
        return False
    other = [name for name in found if name != LOCK and not name.startswith((TEMPORARY, BEFORE))]
    if other:
        raise StoreError(
            f"{source.name} is not a store and not empty.",
            expected="a new folder, an empty one, or a store",
            given=", ".join(other[:5]),
            next_step="Choose another folder with --store.",
        )
    return False


def check_room(source: Source, plan: StorePlan) -> None:
    """Refuses to begin what the disk cannot hold; nobody knows the room of an object store."""
    if source.local is None:
        return
    needed, free = int(plan.raw_bytes() * TYPICAL_RATIO), shutil.disk_usage(source.local).free
    if needed > free:
        raise StoreError(
            f"The disk of {source.name} is too small for this study.",
            expected=f"about {needed / 1e9:.1f} GB free",
            given=f"{free / 1e9:.1f} GB",
            next_step="Free some space, choose another folder with --store, or capture fewer layers.",
        )
