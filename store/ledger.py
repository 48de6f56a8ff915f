"""The ledger: one small sealed JSON file for everything that was committed.

    ledger/layout.json                       the group and array metadata
    ledger/<model>-<unit>.json               one unit of activations of one model
    ledger/arrays/<array name>.json          one array written once
    ledger/tables/<table name>.json          one table

Each names itself and its store and lists its files: path (so array and place), size, SHA-256, and of a shard
the CRC-32C of every inner chunk, which is what a reader of slices compares. The manifest of a complete store
lists the SHA-256 of every entry: nothing in a store can change places with anything else unnoticed.
What is in no ledger does not exist: it is the rest of a run that was killed, and the next writer removes it.
The contents depend on the data alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import StoreError
from store.files import SEAL, Bytes, seal, sha256, unseal
from store.layout import slug
from store.schema import LedgerEntry, belongs, check
from store.shards import ShardEncoder
from store.sources import Source
from store.strict import REPAIR, parse_object

LEDGER = "ledger"
LAYOUT_ENTRY = f"{LEDGER}/layout.json"


@dataclass(frozen=True)
class FileRecord:
    """One committed file: `path` inside the store, bytes, hex SHA-256; of a shard the checksums of its
    chunks (`store.shards.ShardEncoder`)."""

    path: str
    size: int
    sha256: str
    chunks: str | None = None

    @classmethod
    def of(cls, path: str, parts: Iterable[Bytes]) -> FileRecord:
        """Of a file that consists of `parts`; a shard where they come from a `ShardEncoder`."""
        pieces = list(parts)
        chunks = parts.checksums if isinstance(parts, ShardEncoder) else None
        return cls(path, sum(map(len, pieces)), sha256(*pieces), chunks)

    def describes(self, data: bytes | None) -> bool:
        """Whether these are the bytes that were written."""
        return data is not None and len(data) == self.size and sha256(data) == self.sha256


def unit_entry(model: str, unit: int) -> str:
    """Path of the ledger file of one unit of one model."""
    return f"{LEDGER}/{slug(model)}-{unit:05d}.json"


def array_entry(name: str) -> str:
    """Path of the ledger file of an array written once."""
    return f"{LEDGER}/arrays/{name}.json"


def table_entry(name: str) -> str:
    """Path of the ledger file of a table."""
    return f"{LEDGER}/tables/{name}.json"


def entry_bytes(entry: str, records: Iterable[FileRecord], store: str) -> bytes:
    """The text of a ledger entry (its path) of the store with this fingerprint."""
    files = [
        {"path": record.path, "size": record.size, "sha256": record.sha256}
        | ({} if record.chunks is None else {"chunks": record.chunks})
        for record in sorted(records, key=lambda record: record.path)
    ]
    return seal({"entry": entry.removeprefix(f"{LEDGER}/"), "store": store, "files": files})


def write_entry(
    source: Source, entry: str, records: Iterable[FileRecord], store: str, *, durable: bool = True
) -> None:
    """Commits files that are already in place: from here on they exist."""
    source.write(entry, [entry_bytes(entry, records, store)], durable=durable)


def read_entry(
    source: Source, entry: str, store: str | None, digest: str | None = None
) -> dict[str, FileRecord] | None:
    """The files of one ledger entry by path, or None when it was never committed.

    Args:
        store: the store's fingerprint; None accepts any.
        digest: SHA-256 that the manifest of a complete store has of the entry.

    Raises:
        StoreError: the entry is damaged, is another one or another store's, or is missing where the manifest
            lists it.
    """
    data, name = source.read(entry), f"{source.name}/{entry}"
    if data is None and digest is None:
        return None
    if digest is not None and (data is None or sha256(data) != digest):
        source.forget([entry])
        raise StoreError(
            f"{name} is {'missing' if data is None else 'damaged'}.",
            expected="the ledger entry that the manifest lists",
            given="no file" if data is None else f"{len(data)} other bytes",
            next_step=f"Open the store again if it has just been written to. {REPAIR}",
        )
    value = unseal(data or b"", name) if digest is None else parse_object(data or b"", name)
    value.pop(SEAL, None)
    found = check(LedgerEntry, value, name)
    paths = [file.path for file in found.files]
    named = entry.removeprefix(f"{LEDGER}/")
    wrong = found.entry != named or store not in (None, found.store)
    stray = belongs(found.entry, paths)
    if wrong or stray is not None:
        own = f"the entry {found.entry} of the store {found.store[:12]}"
        raise StoreError(
            f"{name} is not the ledger entry of that name.",
            expected=f"the entry {named} of the store {(store or found.store)[:12]}",
            given=own if wrong else f"{own} with the file {stray}",
            next_step=REPAIR,
        )
    return {f.path: FileRecord(f.path, f.size, f.sha256, f.chunks) for f in found.files}


def entries_of(source: Source) -> list[str]:
    """Every ledger entry of a store, sorted."""
    return [f"{LEDGER}/{name}" for name in source.walk(LEDGER) if name.endswith(".json")]


def ledger_digests(source: Source) -> dict[str, str]:
    """SHA-256 of every ledger entry of a store by its name, as the manifest lists them."""
    entries = entries_of(source)
    found = source.map(lambda entry: sha256(source.read(entry) or b""), entries)
    return {entry.removeprefix(f"{LEDGER}/"): digest for entry, digest in zip(entries, found, strict=True)}
