"""What a killed run, a disk or somebody left in a store that is not as it was committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.errors import StoreError
from store.files import TEMPORARY, file_sha256, sha256
from store.layout import METADATA, STATIC_FOLDERS, groups_above
from store.ledger import LEDGER, FileRecord, entries_of, read_entry
from store.places.client import UnreachableError
from store.provenance import COMPLETE
from store.runs import torn
from store.sources import Lock, Source

DATA_FOLDERS = ("activations", *STATIC_FOLDERS, "tables")
Progress = Callable[[int, int], None]


def lost_and_known(
    source: Source, manifest: Mapping[str, Any], progress: Progress | None
) -> tuple[list[str], set[str]]:
    """Reads every committed file of a store.

    Returns:
        Ledger entries (paths) with a file that is not as it was written, that are damaged themselves, or that
        are not what the manifest of a complete store lists, missing ones among them; and the files
        that all others list.
    """
    complete = manifest["state"] == COMPLETE
    listed: Mapping[str, str] = manifest.get("ledger", {}) if complete else {}
    store, entries, known = str(manifest["fingerprint"]), entries_of(source), set[str]()
    names = {entry.removeprefix(f"{LEDGER}/") for entry in entries}
    lost = [f"{LEDGER}/{name}" for name in listed if name not in names]

    def look(entry: str) -> bool:
        """Whether something of an entry is lost."""
        digest = listed.get(entry.removeprefix(f"{LEDGER}/"))
        other = complete and digest != sha256(source.read(entry) or b"")
        return other or broken(source, entry, store, read=True)

    for number, (entry, gone) in enumerate(zip(entries, source.map(look, entries), strict=True)):
        if progress is not None:
            progress(number, len(entries))
        if gone:
            lost.append(entry)
        else:
            known |= (read_entry(source, entry, store) or {}).keys()
    if progress is not None:
        progress(len(entries), len(entries))
    return lost, known


def broken(source: Source, entry: str, store: str, *, read: bool = False) -> bool:
    """Whether files of a ledger entry are missing, have another size or, if `read`, other bytes."""
    try:
        records = (read_entry(source, entry, store) or {}).values()
        stamps = [(record, source.stamp(record.path)) for record in records]
        if any(stamp is None or stamp[0] != record.size for record, stamp in stamps):
            return True
        return read and any(_digest(source, record) != record.sha256 for record in records)
    except UnreachableError:
        raise
    except StoreError:
        return True


def own_files(source: Source, entry: str, store: str) -> list[str]:
    """What an entry lists, but for the metadata of groups, which others list too."""
    name = entry.removeprefix(f"{LEDGER}/arrays/").removesuffix(".json")
    groups = {f"{group}/{METADATA}".lstrip("/") for group in groups_above(name)}
    try:
        return [path for path in read_entry(source, entry, store) or {} if path not in groups]
    except UnreachableError:
        raise
    except StoreError:
        return []


def _digest(source: Source, record: FileRecord) -> str:
    if source.local is not None:
        return file_sha256(source.local / record.path)
    with source.room(record.size):
        return sha256(source.read(record.path) or b"")


def strays(source: Source, known: set[str]) -> Iterator[str]:
    """Files of a store that were never committed, and those of torn writes; not those of live runs, but for
    what killed ones left at a URL."""
    yield from torn(source)
    for path in source.everything():
        stray = (path.split("/", 1)[0] in DATA_FOLDERS or path == METADATA) and path not in known
        if stray or _is_torn(path):
            yield path


def _is_torn(path: str) -> bool:
    """Whether a file's writer did not come to its end, or has not yet; those of live runs are their own."""
    return path.rpartition("/")[2].startswith(TEMPORARY) and not path.startswith("runs/")


def sweep(source: Source, lock: Lock | None, patience: float = 10.0) -> None:
    """Removes what other writers were at when they were killed, once none is at work any more.

    Args:
        lock: this writer's.
        patience: seconds to wait for the others; then it is left to whoever opens the store alone.
    """
    begun, until = [path for path in source.everything() if _is_torn(path)], time.monotonic() + patience
    if not begun or lock is None:
        return
    while not lock.alone_now():
        if time.monotonic() > until:
            return
        time.sleep(0.1)
    for path in begun:
        source.remove(path)
    lock.share()
