"""What a killed run, a disk or somebody left in a store that is not as it was committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.errors import StoreError
from store.files import TEMPORARY, file_sha256, sha256
from store.layout import METADATA, STATIC_FOLDERS, groups_above
from store.ledger import LEDGER, FileRecord, entries_of, read_entry
from store.places.client import UnreachableError
from store.provenance import COMPLETE
from store.runs import torn
from store.sources import Source

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
        top, name = path.split("/", 1)[0], path.rpartition("/")[2]
        stray = (top in DATA_FOLDERS or path == METADATA) and path not in known
        if stray or (name.startswith(TEMPORARY) and top != "runs"):
            yield path
