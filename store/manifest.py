"""Provenance of a store, and `verify`: is every byte still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from store.arrays import check_chunk, read_spec
from store.files import TEMPORARY, entries_below
from store.journal.notes import NOTES, NoteLog
from store.layout import MANIFEST, METADATA, ArraySpec
from store.ledger import LAYOUT_ENTRY, LEDGER, FileRecord, read_entry
from store.maps import MAPS, MapLog
from store.places.client import UnreachableError
from store.provenance import (
    BUILDING,
    COMPLETE,
    check_same_study,
    differences,
    flatten,
    new_manifest,
    read_manifest,
    set_state,
    unchecked_manifest,
    write_manifest,
)
from store.runs import RUNS, RunLog
from store.shards import NO_CHUNK, DamagedChunkError, ShardIndex, index_bytes
from store.sources import Source, open_source
from store.tables import read_table

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
        StoreError: there is no store, or it is of another version.
    """
    source = open_source(path, fresh=True)
    problems: list[Problem] = []
    try:
        manifest = read_manifest(source)
    except UnreachableError:
        raise
    except StoreError as error:
        if source.stamp(MANIFEST) is None or _is_whole(source):
            raise
        manifest = {"state": BUILDING}
        problems.append(Problem(MANIFEST, MANIFEST, str(error)))
    records, wrong_entries = _ledger(source, manifest)
    problems += wrong_entries
    wanted = list(records.values())

    @cache
    def spec_of(array: str) -> ArraySpec:
        return read_spec(source, array, records[f"{array}/{METADATA}"])

    def checks(record: FileRecord) -> list[Problem]:
        with source.room(record.size):
            return list(_check_file(source, record, records, manifest, spec_of))

    checked = source.map(checks, wanted)
    for number, wrong in enumerate(checked):
        if progress is not None:
            progress(number, len(records))
        problems += wrong
    problems += _check_runs(source)
    problems += _check_maps(source)
    problems += _check_notes(source)
    problems += _stray(source, records)
    if progress is not None:
        progress(len(records), len(records))
    return problems


def _ledger(source: Source, manifest: dict[str, Any]) -> tuple[dict[str, FileRecord], list[Problem]]:
    """What the ledger lists, by path, and what is wrong with the ledger."""
    records: dict[str, FileRecord] = {}
    problems: list[Problem] = []
    found = [f"{LEDGER}/{name}" for name in source.walk(LEDGER)]
    listed: dict[str, str] = manifest.get("ledger", {}) if manifest["state"] == COMPLETE else {}
    there = set(found)

    def look(entry: str) -> tuple[dict[str, FileRecord], list[Problem]]:
        name = entry.removeprefix(f"{LEDGER}/")
        if entry not in there:
            return {}, [Problem(LEDGER, entry, "the ledger entry is missing")]
        if listed and name not in listed:
            return {}, [Problem(LEDGER, entry, "the manifest does not list this ledger entry")]
        try:
            return read_entry(source, entry, manifest.get("fingerprint"), listed.get(name)) or {}, []
        except UnreachableError:
            raise
        except StoreError as error:
            return {}, [Problem(LEDGER, entry, f"the ledger entry is damaged ({error})")]

    entries = sorted({*found, LAYOUT_ENTRY, *(f"{LEDGER}/{name}" for name in listed)})
    for more, wrong in source.map(look, entries):
        records |= more
        problems += wrong
    return records, problems


def _is_whole(source: Source) -> bool:
    """Whether the manifest is as somebody wrote it, so that it was refused for what it says."""
    try:
        unchecked_manifest(source)
    except UnreachableError:
        raise
    except StoreError:
        return False
    return True


def _check_file(
    source: Source,
    record: FileRecord,
    records: dict[str, FileRecord],
    manifest: dict[str, Any],
    spec_of: Callable[[str], ArraySpec],
) -> Iterator[Problem]:
    """What is wrong with one committed file."""
    folder, _, name = record.path.rpartition("/")
    is_shard = name.startswith("c.") and f"{folder}/{METADATA}" in records
    array = folder if is_shard or (name == METADATA and folder) else record.path
    try:
        stamp = source.stamp(record.path)
        if stamp is None or stamp[0] != record.size:
            given = "it is missing" if stamp is None else f"it has {stamp[0]} bytes"
            yield Problem(array, name, f"{given}; the ledger says {record.size} bytes")
            return
        data = source.read(record.path) or b""
        if folder == "tables" and record.describes(data):
            prompts = manifest.get("plan", {}).get("n_prompts")
            read_table(data, name.removesuffix(".parquet"), prompts)
    except UnreachableError:
        raise
    except StoreError as error:
        yield Problem(array, name, str(error))
        return
    chunks = _damaged_chunks(folder, name, data, records, spec_of) if is_shard else []
    if record.describes(data) and not chunks:
        return
    what = "its bytes do not match the checksum in the ledger"
    if not chunks:
        yield Problem(array, name, what)
    for chunk in chunks:
        yield Problem(array, chunk, what)


def _damaged_chunks(
    array: str,
    name: str,
    data: bytes,
    records: dict[str, FileRecord],
    spec_of: Callable[[str], ArraySpec],
) -> list[str]:
    """The inner chunks of a shard whose checksums are not the ledger's, in words."""
    checksums = records[f"{array}/{name}"].chunks or ""
    try:
        spec = spec_of(array)
        size = index_bytes(spec.chunks_per_shard)
        index = ShardIndex.parse(data[-size:], spec.chunks_per_shard, len(data))
    except (StoreError, DamagedChunkError) as error:
        return [f"all of shard {name} ({error})"]
    width = len(NO_CHUNK)
    expected = [checksums[i : i + width] for i in range(0, len(checksums), width)]
    if len(expected) != spec.chunks_per_shard:
        return [f"all of shard {name} (the ledger has {len(expected)} checksums)"]
    shard = tuple(map(int, name.split(".")[1:]))
    return [
        f"{_describe(spec, shard, number)} in shard {name}"
        for number, checksum in enumerate(expected)
        if not _intact(spec, data, index.span(number), checksum)
    ]


def _intact(spec: ArraySpec, data: bytes, span: tuple[int, int] | None, checksum: str) -> bool:
    """Whether a chunk is there as the ledger has it."""
    if span is None or checksum == NO_CHUNK:
        return span is None and checksum == NO_CHUNK
    try:
        check_chunk(spec, np.frombuffer(data, np.uint8)[span[0] : sum(span)], checksum)
    except DamagedChunkError:
        return False
    return True


def _describe(spec: ArraySpec, shard: tuple[int, ...], number: int) -> str:
    inside = np.unravel_index(number, spec.grid)
    chunk = tuple(int(s * g + i) for s, g, i in zip(shard, spec.grid, inside, strict=True))
    return spec.describe_chunk(chunk)


def _check_runs(source: Source) -> Iterator[Problem]:
    """Live runs whose files are not what was written, and files that are of none."""
    log = RunLog(source.name)

    def look(run_id: str) -> list[Problem]:
        try:
            log.open(run_id)
        except UnreachableError:
            raise
        except StoreError as error:
            return [Problem(f"{RUNS}/{run_id}", run_id, str(error))]
        return []

    for found in source.map(look, log.ids()):
        yield from found
    for path in log.strays():
        yield Problem(f"{RUNS}/{path}", path, "no run lists it")


def _check_maps(source: Source) -> Iterator[Problem]:
    """Saved maps, and what pages keep, whose files are not what was written."""
    for log in (MapLog(source.name), MapLog(source.name, kept=True)):
        for name in log.names():
            try:
                log.open(name)
            except UnreachableError:
                raise
            except StoreError as error:
                yield Problem(f"{log.folder}/{name}", name, str(error))
        for path in log.strays():
            yield Problem(f"{log.folder}/{path}", path, "it is no map")


def _check_notes(source: Source) -> Iterator[Problem]:
    """Notes that are not as they were written, and files that are none."""
    log = NoteLog(source.name)
    for note_id in log.ids():
        try:
            log.open(note_id)
        except UnreachableError:
            raise
        except StoreError as error:
            yield Problem(f"{NOTES}/{note_id}", note_id, str(error))
    for path in log.strays():
        yield Problem(f"{NOTES}/{path}", path, "it is no note")


def _stray(source: Source, records: dict[str, FileRecord]) -> Iterator[Problem]:
    """Files that belong to nothing: left by a killed run, or put there by someone."""
    for path in source.walk(""):
        if path in records or path in IGNORED or path.split("/")[0] in (LEDGER, RUNS, MAPS, NOTES):
            continue
        yield Problem(path, path.rpartition("/")[2], "no ledger entry lists it")
    if source.local is not None:
        for left in entries_below(source.local):
            inside = left.relative_to(source.local)
            if left.name.startswith(TEMPORARY) and inside.parts[0] != RUNS:
                yield Problem(inside.as_posix(), left.name, "a killed run left it; the next run removes it")
