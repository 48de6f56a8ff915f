"""The folder that a store is begun in: made, or refused before anything is written."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.errors import StoreError
from store.files import TEMPORARY, storage_errors
from store.layout import MANIFEST
from store.plan import StorePlan

LOCK = ".writer.lock"
BEFORE = ".before-"
"""Files of this prefix are made before the store is begun; no writer takes them for leftovers."""
TYPICAL_RATIO = 0.6  # what activations have compressed to at best; only to refuse a hopeless start


def make_folder(root: Path, ours: Callable[[], bool]) -> bool:
    """Makes the folder; True when it was not there. One with other things in it is not written into.

    Args:
        ours: whether a folder without a manifest is what is left of this very store.
    """
    with storage_errors(root):
        try:
            root.mkdir(parents=True)
            return True
        except FileExistsError:
            found = sorted(path.name for path in root.iterdir())
    if MANIFEST in found or ours():
        return False
    other = [name for name in found if name != LOCK and not name.startswith((TEMPORARY, BEFORE))]
    if other:
        raise StoreError(
            f"{root} is not a store and not empty.",
            expected="a new folder, an empty one, or a store",
            given=", ".join(other[:5]),
            next_step="Choose another folder with --store.",
        )
    return False


def check_room(root: Path, plan: StorePlan) -> None:
    """Refuses to begin what the disk cannot hold."""
    needed, free = int(plan.raw_bytes() * TYPICAL_RATIO), shutil.disk_usage(root).free
    if needed > free:
        raise StoreError(
            f"The disk of {root} is too small for this study.",
            expected=f"about {needed / 1e9:.1f} GB free",
            given=f"{free / 1e9:.1f} GB",
            next_step="Free some space, choose another folder with --store, or capture fewer layers.",
        )


def take_lock(root: Path) -> tuple[int, bool]:
    """Locks a store: (handle, whether no other writer is at work, so that leftovers may be removed)."""
    with storage_errors(root / LOCK):
        lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return lock, False
    return lock, True


def share_lock(root: Path, lock: int) -> None:
    """Lets other writers in."""
    with storage_errors(root / LOCK):
        fcntl.flock(lock, fcntl.LOCK_SH)
