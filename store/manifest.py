"""Provenance of a store, and `verify`: is every byte still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from store.arrays import read_spec
from store.files import TEMPORARY, crc32c
from store.layout import MANIFEST, METADATA, ArraySpec
from store.ledger import LAYOUT_ENTRY, LEDGER, FileRecord, read_entry, unit_entry
from store.maps import MAPS, MapLog
from store.provenance import (
    BUILDING,
    COMPLETE,
    check_same_study,
    differences,
    flatten,
    new_manifest,
    read_manifest,
    set_state,
    write_manifest,
)
from store.runs import RUNS, RunLog
from store.shards import DamagedChunkError, ShardIndex, decode_chunk, index_bytes
from store.sources import Source, open_source

__all__ = [
    "BUILDING",
    "COMPLETE",
    "Problem",
    "check_same_study",
    "differences",
    "flatten",
    "new_manifest",
    "read_manifest",
    "set_state",
    "verify",
    "write_manifest",
]

IGNORED = (MANIFEST, ".writer.lock")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not what was written.

    Attributes:
        array: the array, or the file where it belongs to none.
        chunk: the inner chunk in words, or the file's name.
        what: what is wrong.
    """

    array: str
    chunk: str
    what: str

    def __str__(self) -> str:
        return f"{self.array}: {self.chunk}: {self.what}"


def verify(path: str | Path, progress: Progress | None = None) -> list[Problem]:
    """Reads every file of a store and compares it with what was committed.

    Args:
        path: a folder or a URL.
        progress: called as (files done, files in all).

    Returns:
        Everything found: damaged, short, missing and stray files, damaged ledger entries and runs, units
        that a complete store lacks. Empty when all is well.

    Raises:
        StoreError: there is no store.
    """
    source = open_source(path)
    problems: list[Problem] = []
    try:
        manifest = read_manifest(source)
    except StoreError as error:
        if source.stamp(MANIFEST) is None:
            raise
        manifest = {"state": BUILDING}
        problems.append(Problem(MANIFEST, MANIFEST, str(error)))
    found = [f"{LEDGER}/{name}" for name in source.walk(LEDGER)]
    records: dict[str, FileRecord] = {}
    for entry in found:
        try:
            records |= read_entry(source, entry) or {}
        except (StoreError, KeyError, TypeError, ValueError) as error:
            problems.append(Problem(LEDGER, entry, f"the ledger entry is damaged ({error})"))
    problems += [
        Problem(LEDGER, entry, "the ledger entry is missing")
        for entry in _expected_entries(manifest)
        if entry not in found
    ]
    for number, record in enumerate(records.values()):
        if progress is not None:
            progress(number, len(records))
        problems += _check_file(source, record, records)
    problems += _check_runs(source)
    problems += _check_maps(source)
    problems += _stray(source, records)
    if progress is not None:
        progress(len(records), len(records))
    return problems


def _expected_entries(manifest: dict[str, Any]) -> list[str]:
    """Ledger entries that must exist."""
    if manifest["state"] != COMPLETE:
        return [LAYOUT_ENTRY]
    plan = manifest["plan"]
    units = range(-(-plan["n_prompts"] // plan["unit_prompts"]))
    wanted = {unit_entry(model, unit) for model in plan["model_order"] for unit in units}
    return sorted({LAYOUT_ENTRY} | wanted | {f"{LEDGER}/{name}" for name in manifest["ledger"]})


def _check_file(source: Source, record: FileRecord, records: dict[str, FileRecord]) -> Iterator[Problem]:
    """What is wrong with one committed file."""
    folder, _, name = record.path.rpartition("/")
    is_shard = name.startswith("c.") and f"{folder}/{METADATA}" in records
    array = folder if is_shard or (name == METADATA and folder) else record.path
    stamp = source.stamp(record.path)
    if stamp is None or stamp[0] != record.size:
        given = "it is missing" if stamp is None else f"it has {stamp[0]} bytes"
        yield Problem(array, name, f"{given}; the ledger says {record.size} bytes")
        return
    data = source.read(record.path) or b""
    if crc32c(data) == record.crc:
        return
    what = "its bytes do not match the checksum in the ledger"
    chunks = _damaged_chunks(source, folder, name, data, records) if is_shard else []
    if not chunks:
        yield Problem(array, name, what)
    for chunk in chunks:
        yield Problem(array, chunk, what)


def _damaged_chunks(
    source: Source, array: str, name: str, data: bytes, records: dict[str, FileRecord]
) -> list[str]:
    """The inner chunks of a shard that do not match their own checksums, in words."""
    try:
        spec = read_spec(source, array, records[f"{array}/{METADATA}"])
        size = index_bytes(spec.chunks_per_shard)
        index = ShardIndex.parse(data[-size:], spec.chunks_per_shard, len(data))
    except (StoreError, DamagedChunkError) as error:
        return [f"all of shard {name} ({error})"]
    shard = tuple(map(int, name.split(".")[1:]))
    return [
        f"{_describe(spec, shard, number)} in shard {name}"
        for number in range(spec.chunks_per_shard)
        if (span := index.span(number)) is not None and not _decodes(spec, data[span[0] : span[0] + span[1]])
    ]


def _decodes(spec: ArraySpec, data: bytes) -> bool:
    try:
        decode_chunk(np.frombuffer(data, np.uint8), np.empty(spec.chunk, spec.dtype), compress=spec.compress)
    except DamagedChunkError:
        return False
    return True


def _describe(spec: ArraySpec, shard: tuple[int, ...], number: int) -> str:
    inside = np.unravel_index(number, spec.grid)
    chunk = tuple(int(s * g + i) for s, g, i in zip(shard, spec.grid, inside, strict=True))
    return spec.describe_chunk(chunk)


def _check_runs(source: Source) -> Iterator[Problem]:
    log = RunLog(source.name)
    folders = {path.split("/")[0] for path in source.walk(RUNS) if "/" in path}
    for run_id in sorted(folders):
        try:
            log.open(run_id)
        except (StoreError, KeyError, TypeError) as error:
            yield Problem(RUNS, run_id, str(error))


def _check_maps(source: Source) -> Iterator[Problem]:
    """Saved maps whose file is not what was written."""
    log = MapLog(source.name)
    for name in log.names():
        try:
            log.open(name)
        except StoreError as error:
            yield Problem(f"{MAPS}/{name}", name, str(error))


def _stray(source: Source, records: dict[str, FileRecord]) -> Iterator[Problem]:
    """Files that belong to nothing: left by a killed run, or put there by someone."""
    for path in source.walk(""):
        if path in records or path in IGNORED or path.split("/")[0] in (LEDGER, RUNS, MAPS):
            continue
        yield Problem(path, path.rpartition("/")[2], "no ledger entry lists it")
    if source.local is not None:
        for left in sorted(source.local.rglob(f"{TEMPORARY}*")):
            inside = left.relative_to(source.local)
            if inside.parts[0] != RUNS:
                yield Problem(inside.as_posix(), left.name, "a killed run left it; the next run removes it")
