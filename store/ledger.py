"""The ledger: one small sealed JSON file for everything that was committed.

    ledger/layout.json                       the group and array metadata
    ledger/<model>-<unit>.json               one unit of activations of one model
    ledger/arrays/<array name>.json          one array written once
    ledger/tables/<table name>.json          one table

Each lists its files with size and CRC-32C. What is in no ledger does not exist: it is the rest of
a run that was killed, and the next writer removes it. The contents depend on the data alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from store.files import Bytes, atomic_write, crc32c, seal, unseal
from store.layout import slug
from store.sources import Source

LEDGER = "ledger"
LAYOUT_ENTRY = f"{LEDGER}/layout.json"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and CRC-32C of one committed file; `path` inside the store."""

    path: str
    size: int
    crc: int

    @classmethod
    def of(cls, path: str, parts: Iterable[Bytes]) -> FileRecord:
        pieces = list(parts)
        return cls(path, sum(map(len, pieces)), crc32c(*pieces))


def unit_entry(model: str, unit: int) -> str:
    """Path of the ledger file of one unit of one model."""
    return f"{LEDGER}/{slug(model)}-{unit:05d}.json"


def array_entry(name: str) -> str:
    """Path of the ledger file of an array written once."""
    return f"{LEDGER}/arrays/{name}.json"


def table_entry(name: str) -> str:
    """Path of the ledger file of a table."""
    return f"{LEDGER}/tables/{name}.json"


def write_entry(root: Path, entry: str, records: Iterable[FileRecord], *, durable: bool = True) -> None:
    """Commits files that are already in place: from here on they exist."""
    files = [
        {"path": record.path, "size": record.size, "crc32c": f"{record.crc:08x}"}
        for record in sorted(records, key=lambda record: record.path)
    ]
    atomic_write(root / entry, [seal({"files": files})], durable=durable)


def read_entry(source: Source, entry: str) -> dict[str, FileRecord] | None:
    """The files of one ledger entry by path, or None when it was never committed.

    Raises:
        StoreError: the ledger file is damaged.
    """
    data = source.read(entry)
    if data is None:
        return None
    listed: list[Mapping[str, str | int]] = unseal(data, f"{source.name}/{entry}")["files"]
    records = (FileRecord(str(f["path"]), int(f["size"]), int(str(f["crc32c"]), 16)) for f in listed)
    return {record.path: record for record in records}


def local_entries(root: Path) -> Iterator[str]:
    """Every ledger entry of a local store, sorted."""
    for path in sorted((root / LEDGER).rglob("*.json")):
        if path.is_file() and not path.name.startswith("."):
            yield path.relative_to(root).as_posix()
