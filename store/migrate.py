"""Brings a store of version 1 up to date: content hashes in its ledger, runs and maps.

Version 1 kept a CRC-32C of every file. Of a shard that hardly depends on its values, since every chunk in it
is followed by its own checksum: whether a chunk is whole is told, whether it is in its own place isn't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import StoreError
from store.files import atomic_write, crc32c, seal, sha256, unseal
from store.layout import FORMAT, METADATA, VERSION, ArraySpec
from store.ledger import LEDGER, FileRecord, entries_of, ledger_digests, write_entry
from store.maps import KEPT, MAPS, RECORD, SUFFIX, from_bytes
from store.provenance import COMPLETE, OLD_FORMAT, read_manifest, unchecked_manifest, write_manifest
from store.runs import RECORD as RUN_RECORD
from store.runs import RUNS
from store.shards import CHECKSUM_BYTES, DamagedChunkError, ShardIndex, index_bytes, shard_checksums
from store.sources import LocalSource, to_write

__all__ = ["migrate"]

Say = Callable[[str], None]


def migrate(path: str | Path, say: Say = lambda text: None) -> None:
    """Rewrites ledger, runs' records and manifest of a store of version 1; arrays and tables stay.

    Every file is checked against its old checksum first. Stopped at any moment, the same call goes on.

    Args:
        say: told what cannot be brought up to date (a damaged live run or map) and is left as it is.

    Raises:
        StoreError: no store of version 1, a damaged one (nothing is rewritten where that is found first), or
            one that is being written.
    """
    root = to_write(path, "A store of version 1")
    source = LocalSource(root)
    manifest = unchecked_manifest(source)
    if (manifest.get("format"), manifest.get("version")) != (OLD_FORMAT, None):
        read_manifest(source)  # says what is wrong with another version
        say(f"{root} is of version {VERSION} already.")
        return
    lock = source.lock()
    try:
        if not lock.alone:
            raise StoreError(
                f"The store at {root} is being written.",
                expected="a store that nobody writes",
                given="a lock on it",
                next_step="Wait until precompute.py has ended.",
            )
        store = str(manifest.get("fingerprint"))
        for entry in entries_of(source):
            records = _records(source, entry)
            if records is not None:
                write_entry(source, entry, records, store)
        for line in (*_runs(root, store), *_maps(root, store)):
            say(line)
        new = {**manifest, "format": FORMAT, "version": VERSION, "ledger": ledger_digests(source)}
        if manifest.get("state") == COMPLETE:
            lost = [name for name in manifest.get("ledger", ()) if name not in new["ledger"]]
            if lost:
                raise _damaged(f"{LEDGER}/{lost[0]}", "no file")
        write_manifest(source, new)
    finally:
        lock.close()


def _records(source: LocalSource, entry: str) -> list[FileRecord] | None:
    """What an entry of version 1 lists, checked and hashed; None where it is of version 2 already."""
    value = unseal(source.read(entry) or b"", f"{source.name}/{entry}")
    if "store" in value:
        return None
    try:
        listed = [(str(f["path"]), int(f["size"]), int(f["crc32c"], 16)) for f in value["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(entry, f"{type(error).__name__}: {error}") from error
    found = []
    for path, size, crc in listed:
        inside = not any(part in ("", "..") for part in path.split("/"))
        data = source.read(path) if inside else None
        if data is None or len(data) != size or crc32c(data) != crc:
            raise _damaged(path, "no file" if data is None else "other bytes")
        found.append(FileRecord(path, size, sha256(data), _checksums(source, path, data)))
    return found


def _checksums(source: LocalSource, path: str, data: bytes) -> str | None:
    """Checksums of a shard's chunks, each chunk checked; None for another file."""
    folder, _, name = path.rpartition("/")
    metadata = source.read(f"{folder}/{METADATA}") if name.startswith("c.") else None
    if metadata is None:
        return None
    spec = ArraySpec.from_metadata(folder, metadata)
    try:
        index = ShardIndex.parse(
            data[-index_bytes(spec.chunks_per_shard) :], spec.chunks_per_shard, len(data)
        )
    except DamagedChunkError as error:
        raise _damaged(path, error) from error
    for number in range(spec.chunks_per_shard):
        span = index.span(number)
        if span is None:
            continue
        piece = data[span[0] : sum(span)]
        own = crc32c(piece[:-CHECKSUM_BYTES]).to_bytes(CHECKSUM_BYTES, "little")
        if own != piece[-CHECKSUM_BYTES:]:
            raise _damaged(path, f"chunk {number} with other bytes")
    return shard_checksums(data, index)


def _runs(root: Path, store: str) -> Iterator[str]:
    """Rewrites the records of live runs; yields what is left as it is."""
    for path in sorted((root / RUNS).glob(f"[!.]*/{RUN_RECORD}")):
        try:
            record = unseal(path.read_bytes(), str(path))
            if "store" not in record:
                tables = {name: _run_table(path.parent, name, e) for name, e in record["tables"].items()}
                atomic_write(path, [seal({**record, "tables": tables, "store": store})])
        except (StoreError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            yield f"live run {path.parent.name} is damaged and stays as it is: {error}"


def _run_table(folder: Path, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    data = (folder / f"{name}.parquet").read_bytes()
    if len(data) != entry["size"] or f"{crc32c(data):08x}" != entry["crc32c"]:
        raise _damaged(f"{name}.parquet", "other bytes")
    return {"size": len(data), "sha256": sha256(data)}


def _maps(root: Path, store: str) -> Iterator[str]:
    """Writes the records of saved maps; what pages keep for themselves is made again when it is missed."""
    for path in sorted((root / KEPT).glob(f"*{SUFFIX}")):
        if not _beside(path).exists():
            path.unlink()
    for path in sorted((root / MAPS).glob(f"*{SUFFIX}")):
        try:
            data, name = path.read_bytes(), path.name.removesuffix(SUFFIX)
            if from_bytes(data, path.name).name != name:
                raise _damaged(path.name, "a map that was saved under another name")
            head = sha256(data[: 8 + int.from_bytes(data[:8], "little")])
            entry = {"name": name, "store": store, "size": len(data), "sha256": sha256(data)}
            atomic_write(_beside(path), [seal({**entry, "head": head})])
        except (StoreError, OSError) as error:
            yield f"saved map {path.name} is damaged and stays as it is: {error}"


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + RECORD)


def _damaged(path: str, given: object) -> StoreError:
    return StoreError(
        f"{path} is damaged: it is not as its old checksum says.",
        expected="a store that is whole",
        given=given,
        next_step="Restore it from a copy, or compute the store again in a new folder.",
    )
