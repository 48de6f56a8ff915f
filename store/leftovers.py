"""What a killed run, a disk or somebody left in a store that is not as it was committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import StoreError
from store.files import TEMPORARY, entries_below, file_sha256, sha256
from store.ledger import LEDGER, local_entries, read_entry
from store.provenance import COMPLETE
from store.sources import Source

STATIC_FOLDERS = ("grams", "weights", "subspaces", "shared")
DATA_FOLDERS = ("activations", *STATIC_FOLDERS, "tables")
Progress = Callable[[int, int], None]


def lost_and_known(
    source: Source, root: Path, manifest: Mapping[str, Any], progress: Progress | None
) -> tuple[list[str], set[str]]:
    """Reads every committed file of a local store.

    Returns:
        Ledger entries (paths) with a file that is not as it was written, that are damaged themselves, or that
        are not what the manifest of a complete store lists, missing ones among them; and the files
        that all others list.
    """
    complete = manifest["state"] == COMPLETE
    listed: Mapping[str, str] = manifest.get("ledger", {}) if complete else {}
    store, entries, known = str(manifest["fingerprint"]), list(local_entries(root)), set[str]()
    names = {entry.removeprefix(f"{LEDGER}/") for entry in entries}
    lost = [f"{LEDGER}/{name}" for name in listed if name not in names]
    for number, entry in enumerate(entries):
        if progress is not None:
            progress(number, len(entries))
        digest = listed.get(entry.removeprefix(f"{LEDGER}/"))
        other = complete and digest != sha256((root / entry).read_bytes())
        if other or broken(source, root, entry, store, read=True):
            lost.append(entry)
        else:
            known |= (read_entry(source, entry, store) or {}).keys()
    if progress is not None:
        progress(len(entries), len(entries))
    return lost, known


def broken(source: Source, root: Path, entry: str, store: str, *, read: bool = False) -> bool:
    """Whether files of a ledger entry are missing, have another size or, if `read`, other bytes."""
    try:
        records = (read_entry(source, entry, store) or {}).values()
        stamps = [(record, source.stamp(record.path)) for record in records]
        if any(stamp is None or stamp[0] != record.size for record, stamp in stamps):
            return True
        return read and any(file_sha256(root / record.path) != record.sha256 for record in records)
    except StoreError:
        return True


def strays(root: Path, known: set[str]) -> Iterator[Path]:
    """Files of a store that were never committed, and those of torn writes; not those of live runs."""
    for path in entries_below(root):
        inside = path.relative_to(root)
        stray = inside.parts[0] in DATA_FOLDERS and inside.as_posix() not in known
        temporary = path.name.startswith(TEMPORARY) and inside.parts[0] != "runs"
        if (path.is_file() or path.is_symlink() or path.is_fifo()) and (temporary or stray):
            yield path
