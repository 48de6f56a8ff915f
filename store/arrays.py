"""Reads regions of one array of a store, checking every byte it returns."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engine.errors import StoreError
from store.bfloat16 import widen
from store.files import crc32c
from store.layout import METADATA, ArraySpec
from store.ledger import FileRecord
from store.shards import DamagedChunkError, ShardIndex, decode_chunk, index_bytes, parallel
from store.sources import Source, Stamp

Array = np.ndarray[Any, Any]
Records = Callable[[tuple[int, ...]], Mapping[str, FileRecord] | None]
Region = tuple[slice, ...]

REPAIR = (
    "Find everything that is damaged with: python precompute.py STUDY.toml --store PATH --verify. "
    "Delete the damaged files and run precompute.py again: it computes only their units."
)
_SCRATCH = threading.local()


def damaged(
    array: str, where: str, given: object, expected: str = "the bytes that were written"
) -> StoreError:
    """The error for anything in an array that is not what was committed."""
    return StoreError(f"Array {array}: {where} is damaged.", expected=expected, given=given, next_step=REPAIR)


class ArrayReader:
    """Lazy access to one array.

    Args:
        source: the store's files.
        spec: shape, chunks and codecs.
        records: shard -> the committed files that it is one of, or None when it was never committed.
    """

    def __init__(self, source: Source, spec: ArraySpec, records: Records) -> None:
        self.source, self.spec, self.records = source, spec, records
        self._name = f"{spec.name} of {source.name}"
        self._indices: dict[str, tuple[Stamp, ShardIndex]] = {}

    def read(self, region: Region, *, widened: bool = False) -> Array:
        """A region as a fresh array.

        Args:
            region: one slice with step 1 for every axis, inside the shape.
            widened: bfloat16 bits as float32.

        Raises:
            StoreError: a shard is missing, has another size, or a chunk is damaged; names array and chunk.
        """
        spec = self.spec
        bounds = [s.indices(n) for s, n in zip(region, spec.shape, strict=True)]
        shape = tuple(max(0, stop - start) for start, stop, _ in bounds)
        out = np.empty(shape, np.float32 if widened else spec.dtype)
        if out.size:
            first = [start // c for (start, _, _), c in zip(bounds, spec.chunk, strict=True)]
            last = [-(-stop // c) for (_, stop, _), c in zip(bounds, spec.chunk, strict=True)]
            by_shard: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
            for offset in np.ndindex(*(b - a for a, b in zip(first, last, strict=True))):
                chunk = tuple(a + o for a, o in zip(first, offset, strict=True))
                by_shard.setdefault(spec.locate(chunk)[0], []).append(chunk)
            starts = [start for start, _, _ in bounds]
            list(parallel(lambda item: self._fill(*item, starts, out), list(by_shard.items())))
        return out

    def _fill(
        self, shard: tuple[int, ...], chunks: list[tuple[int, ...]], starts: list[int], out: Array
    ) -> None:
        """Decodes the wanted chunks of one shard into their places in `out`."""
        spec, path = self.spec, self.spec.shard_path(shard)
        spans = self._spans(shard, path, chunks)
        present = [(chunk, span) for chunk, span in zip(chunks, spans, strict=True) if span is not None]
        pieces = self.source.spans(path, [span for _, span in present])
        for chunk, span in zip(chunks, spans, strict=True):
            place, inside = self._overlap(chunk, starts, out.shape)
            target = out[place]
            if span is None:
                target[...] = np.nan if out.dtype.kind == "f" else spec.fill
                continue
            piece = next(pieces)
            try:
                whole = target.shape == spec.chunk and target.flags.c_contiguous
                if whole and target.dtype == spec.dtype:
                    decode_chunk(piece, target, compress=spec.compress)
                    continue
                scratch = _scratch(spec)
                decode_chunk(piece, scratch, compress=spec.compress)
            except DamagedChunkError as error:
                raise damaged(self._name, spec.describe_chunk(chunk), error) from error
            if target.dtype == spec.dtype:
                target[...] = scratch[inside]
            elif target.flags.c_contiguous:
                widen(scratch[inside], target)
            else:
                target[...] = widen(scratch[inside])

    def _overlap(
        self, chunk: tuple[int, ...], starts: list[int], shape: tuple[int, ...]
    ) -> tuple[Region, Region]:
        """(place in the output, place inside the chunk) where a chunk and the region meet."""
        place, inside = [], []
        for index, width, start, size in zip(chunk, self.spec.chunk, starts, shape, strict=True):
            low, high = max(index * width, start), min((index + 1) * width, start + size)
            place.append(slice(low - start, high - start))
            inside.append(slice(low - index * width, high - index * width))
        return tuple(place), tuple(inside)

    def _spans(
        self, shard: tuple[int, ...], path: str, chunks: list[tuple[int, ...]]
    ) -> list[tuple[int, int] | None]:
        """Where chunks lie in a shard file, after checking the file against the ledger."""
        committed = self.records(shard)
        if committed is None or path not in committed:
            raise StoreError(
                f"Array {self._name}: {self.spec.describe_chunk(chunks[0])} was not computed yet.",
                expected="a finished store",
                given="an unfinished one",
                next_step="Run precompute.py again on the same study: it goes on where it stopped.",
            )
        stamp, record = self.source.stamp(path), committed[path]
        if stamp is None or stamp[0] != record.size:
            found = "no file" if stamp is None else f"{stamp[0]} bytes"
            raise self._damaged_shard(path, chunks[0], found, f"{record.size} bytes, as the ledger says")
        kept = self._indices.get(path)
        if kept is None or kept[0] != stamp:
            size = index_bytes(self.spec.chunks_per_shard)
            tail = next(iter(self.source.spans(path, [(max(0, stamp[0] - size), size)]))).tobytes()
            try:
                kept = stamp, ShardIndex.parse(tail, self.spec.chunks_per_shard, stamp[0])
            except DamagedChunkError as error:
                raise self._damaged_shard(path, chunks[0], error) from error
            self._indices[path] = kept
        return [kept[1].span(self.spec.locate(chunk)[1]) for chunk in chunks]

    def _damaged_shard(
        self, path: str, chunk: tuple[int, ...], given: object, expected: str = "the bytes that were written"
    ) -> StoreError:
        where = f"all of shard {path.rsplit('/', 1)[1]}, from {self.spec.describe_chunk(chunk)}"
        return damaged(self._name, where, given, expected)


def _scratch(spec: ArraySpec) -> Array:
    """This thread's buffer for one chunk; fresh memory for each would cost more than decoding."""
    buffers: dict[tuple[Any, ...], Array] = _SCRATCH.__dict__.setdefault("buffers", {})
    key = (spec.chunk, spec.dtype)
    if key not in buffers:
        buffers.clear()
        buffers[key] = np.empty(spec.chunk, spec.dtype)
    return buffers[key]


def read_spec(source: Source, name: str, record: FileRecord | None) -> ArraySpec:
    """The metadata of one array, checked against its ledger record.

    Raises:
        StoreError: there is no such array, or its metadata is damaged.
    """
    path = f"{name}/{METADATA}"
    data = source.read(path) if record is not None else None
    if record is None:
        raise StoreError(
            f"There is no array {name!r} in the store at {source.name}.",
            expected="one of Store.array_names()",
            given=repr(name),
            next_step="Choose one of the names, or name it in the study file and compute another store.",
        )
    if data is None or len(data) != record.size or crc32c(data) != record.crc:
        raise damaged(f"{name} of {source.name}", f"its metadata ({METADATA})", "other bytes or none")
    return ArraySpec.from_metadata(name, json.loads(data))
