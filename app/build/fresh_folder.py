"""A store's folder is as it was when the store was refused before anything was captured."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import StoreError
from store.folder import BEFORE, LOCK
from store.ledger import LAYOUT_ENTRY, LEDGER, entries_of
from store.sources import Source

__all__ = ["nothing_left"]


@contextmanager
def nothing_left(source: Source) -> Iterator[None]:
    """Takes away what the block put into a new or empty place, when it fails before a unit was committed.

    What was made before the store stays: a model's answers need not be given again. A store that was there is
    not touched, nor is anything when the person stops the program: the same command then goes on.
    """
    if source.local is None:
        with _nothing_at_url(source):
            yield
        return
    root = source.local
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    fresh = bool(new) or (root.is_dir() and all(child.name.startswith(BEFORE) for child in root.iterdir()))
    try:
        yield
    except Exception:
        if fresh and not _committed(root) and _alone(root):
            _take_away(root, new)
        raise


@contextmanager
def _nothing_at_url(source: Source) -> Iterator[None]:
    fresh = all(name.startswith(BEFORE) for name in source.names())
    try:
        yield
    except Exception:
        if fresh:
            with suppress(StoreError):
                _empty(source)
        raise


def _empty(source: Source) -> None:
    """Removes all, where no unit was committed and nobody else writes; StoreError where somebody does."""
    lock = source.lock()
    try:
        if not [entry for entry in entries_of(source) if entry.count("/") == 1 and entry != LAYOUT_ENTRY]:
            for path in source.everything():
                if path != LOCK and not path.startswith(BEFORE):
                    source.remove(path)
    finally:
        lock.close()


def _committed(root: Path) -> bool:
    """Whether the ledger lists a unit of activations."""
    units = {path.name for path in (root / LEDGER).glob("*.json")} - {Path(LAYOUT_ENTRY).name}
    return bool(units)


def _alone(root: Path) -> bool:
    """Whether no other program writes this store."""
    try:
        with open(root / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _take_away(root: Path, new: list[Path]) -> None:
    """Empties the folder, and removes the folders that were not there, as far as nothing else is in them."""
    for child in list(root.iterdir()) if root.is_dir() else []:
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif not child.name.startswith(BEFORE):
            child.unlink(missing_ok=True)
    for folder in new:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
