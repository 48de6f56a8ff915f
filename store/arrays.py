"""Reads regions of one array of a store through zarr, once what it reads is what the ledger lists."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import zarr
from zarr.buffer import cpu
from zarr.storage import LocalStore, MemoryStore

from engine.errors import StoreError
from store.bfloat16 import widen
from store.files import crc32c
from store.layout import METADATA, ArraySpec
from store.ledger import FileRecord
from store.schema import CHUNK_LIMIT
from store.shards import (
    BLOSC_HEADER,
    CHECKSUM_BYTES,
    NO_CHUNK,
    DamagedChunkError,
    ShardIndex,
    checksum_text,
    index_bytes,
)
from store.sources import Source, Span, Stamp

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer
    from zarr.abc.store import Store as ZarrStore

Array = np.ndarray[Any, Any]
Records = Callable[[tuple[int, ...]], Mapping[str, FileRecord] | None]
Region = tuple[slice, ...]

REPAIR = (
    "Find everything that is damaged with: python precompute.py STUDY.toml --store PATH --verify. "
    "The same command without --verify computes what is damaged again, and only that."
)
MOST_EXPANSION = 300  # lz4 packs 255 bytes into one at best
T = TypeVar("T")
ZARRS, ZARR = "zarrs.ZarrsCodecPipeline", "zarr.core.codec_pipeline.BatchedCodecPipeline"
_CHOICE = threading.Lock()  # zarr has one choice of a pipeline for all threads
_LOOPS: list[asyncio.AbstractEventLoop] = []


def damaged(
    array: str, where: str, given: object, expected: str = "the bytes that were written"
) -> StoreError:
    """The error for anything in an array that is not what was committed."""
    return StoreError(f"Array {array}: {where} is damaged.", expected=expected, given=given, next_step=REPAIR)


class Chunk(NamedTuple):
    """One inner chunk: its place in the array's grid, its shard's, and its number in the shard."""

    place: tuple[int, ...]
    shard: tuple[int, ...]
    number: int


class Shard(NamedTuple):
    """A shard file as it was when its index, the `tail` of it, was read."""

    record: FileRecord
    stamp: Stamp
    tail: bytes
    table: ShardIndex

    def checksum(self, number: int) -> str:
        """Of a chunk, as the ledger has it."""
        width = len(NO_CHUNK)
        return (self.record.chunks or "")[number * width : (number + 1) * width]


class ArrayReader:
    """Lazy access to one array, through zarr.

    Args:
        source: the store's files.
        spec: shape, chunks and codecs.
        records: shard -> the committed files that it is one of, or None when it was never committed.
    """

    def __init__(self, source: Source, spec: ArraySpec, records: Records) -> None:
        self.source, self.spec, self.records = source, spec, records
        self._name = f"{spec.name} of {source.name}"
        self._shards: dict[str, Shard] = {}

    def read(self, region: Region, *, widened: bool = False) -> Array:
        """A region as a fresh array.

        Before zarr reads a chunk, its shard's size and its bytes are held against the ledger: zarrs reads a
        part of a shard without looking at checksums.

        Args:
            region: one slice with step 1 for every axis, inside the shape.
            widened: bfloat16 bits as float32.

        Raises:
            StoreError: a shard is missing, has another size, or a chunk is damaged; names array and chunk.
        """
        chunks = self._chunks(region)
        try:
            values = self._read(region, chunks)
            return widen(values) if widened else values
        except StoreError:
            self.source.forget({self.spec.shard_path(chunk.shard) for chunk in chunks})
            raise
        except MemoryError as error:
            raise StoreError(
                f"Array {self._name}: this region does not fit into memory.",
                expected="a region that does",
                given=f"{len(chunks)} chunks of {self.spec.chunk_bytes} bytes",
                next_step="Ask for fewer rows, or use a machine with more memory.",
            ) from error

    def _read(self, region: Region, chunks: list[Chunk]) -> Array:
        shards, zarrs = self._open(chunks), self.source.local is not None and _zarrs_process() == os.getpid()
        checked = self._check(chunks, shards, keep=not zarrs)
        try:
            values = _slice(self._zarrs if zarrs else _opened(self.spec, MemoryStore(checked), ZARR), region)
        except MemoryError:
            raise
        except Exception as error:
            raise damaged(self._name, self.spec.describe_chunk(chunks[0].place), error) from error
        for path, shard in shards.items() if zarrs else ():
            if self.source.stamp(path) != shard.stamp:
                raise self._damaged_shard(path, chunks[0], "a file that changed while it was read")
        return values

    @cached_property
    def _zarrs(self) -> zarr.Array[Any]:
        """The array as zarrs reads it: from the files."""
        return _opened(self.spec, LocalStore(self.source.name, read_only=True), ZARRS)

    def _chunks(self, region: Region) -> list[Chunk]:
        """The inner chunks that a region touches, in C order."""
        bounds = [range(*s.indices(n)) for s, n in zip(region, self.spec.shape, strict=True)]
        along = [
            range(b.start // c, -(-b.stop // c) if b else 0)
            for b, c in zip(bounds, self.spec.chunk, strict=True)
        ]
        return [Chunk(index, *self.spec.locate(index)) for index in itertools.product(*along)]

    def _open(self, chunks: list[Chunk]) -> dict[str, Shard]:
        """The shard files of some chunks by path, each of the size that the ledger says."""
        shards: dict[str, Shard] = {}
        fresh: dict[str, tuple[Chunk, FileRecord, Stamp]] = {}
        for shard, chunk in {chunk.shard: chunk for chunk in reversed(chunks)}.items():
            path = self.spec.shard_path(shard)
            record, stamp = self._committed(path, chunk)
            kept = self._shards.get(path)
            if kept is not None and kept.stamp == stamp and kept.record == record:
                shards[path] = kept
            else:
                fresh[path] = chunk, record, stamp
        number = self.spec.chunks_per_shard
        size = index_bytes(number)
        tails = self.source.spans([(path, stamp[0] - size, size) for path, (_, _, stamp) in fresh.items()])
        for (path, (chunk, record, stamp)), tail in zip(fresh.items(), tails, strict=True):
            try:
                index = ShardIndex.parse(tail.tobytes(), number, record.size)
            except DamagedChunkError as error:
                raise self._damaged_shard(path, chunk, error) from error
            shards[path] = self._shards[path] = Shard(record, stamp, tail.tobytes(), index)
        return shards

    def _committed(self, path: str, chunk: Chunk) -> tuple[FileRecord, Stamp]:
        """What the ledger says of a shard, and the file that is there."""
        committed = self.records(chunk.shard)
        if committed is None or path not in committed:
            raise StoreError(
                f"Array {self._name}: {self.spec.describe_chunk(chunk.place)} was not computed yet.",
                expected="a finished store",
                given="an unfinished one",
                next_step="Run precompute.py again on the same study: it goes on where it stopped.",
            )
        record, stamp, number = committed[path], self.source.stamp(path), self.spec.chunks_per_shard
        if stamp is None or stamp[0] != record.size:
            found = "no file" if stamp is None else f"{stamp[0]} bytes"
            raise self._damaged_shard(path, chunk, found, f"{record.size} bytes, as the ledger says")
        listed = len(record.chunks or "") // len(NO_CHUNK)
        if listed != number or record.size < index_bytes(number):
            given = f"{listed} checksums, {record.size} bytes"
            raise self._damaged_shard(path, chunk, given, f"{number} chunks, as its metadata says")
        return record, stamp

    def _check(self, chunks: list[Chunk], shards: Mapping[str, Shard], *, keep: bool) -> dict[str, Buffer]:
        """Holds the bytes of chunks against the ledger.

        Returns:
            their shards by path where they are to be kept, without what was not asked for.
        """
        spec, present = self.spec, list[tuple[Chunk, Span, str]]()
        for chunk in chunks:
            path = spec.shard_path(chunk.shard)
            found, checksum = shards[path].table.span(chunk.number), shards[path].checksum(chunk.number)
            if (found is None) != (checksum == NO_CHUNK):
                given = "no chunk where there was one" if found is None else "a chunk where there was none"
                raise damaged(self._name, f"{spec.describe_chunk(chunk.place)} in {path}", given)
            if found is not None:
                present.append((chunk, (path, *found), checksum))
        kept = {path: np.empty(shard.record.size, np.uint8) for path, shard in shards.items() if keep}
        for path, room in kept.items():
            room[-len(shards[path].tail) :] = np.frombuffer(shards[path].tail, np.uint8)
        pieces = self.source.spans([span for _, span, _ in present])
        for (chunk, (path, start, length), checksum), piece in zip(present, pieces, strict=True):
            try:
                check_chunk(spec, piece, checksum)
            except DamagedChunkError as error:
                raise damaged(self._name, spec.describe_chunk(chunk.place), error) from error
            if keep:
                kept[path][start : start + length] = piece
        return {path: cpu.Buffer.from_array_like(room) for path, room in kept.items()}

    def _damaged_shard(
        self, path: str, chunk: Chunk, given: object, expected: str = "the bytes that were written"
    ) -> StoreError:
        where = f"all of shard {path.rsplit('/', 1)[1]}, from {self.spec.describe_chunk(chunk.place)}"
        return damaged(self._name, where, given, expected)


def check_chunk(spec: ArraySpec, data: Array, expected: str) -> None:
    """Whether an inner chunk (uint8, its checksum included) is the one that the ledger lists.

    Args:
        expected: its checksum in the ledger, which no other chunk's bytes have.

    Raises:
        DamagedChunkError: its own checksum is wrong, or the ledger's, or the length that it unpacks to.
    """
    body, tail = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:].tobytes()
    if len(data) <= CHECKSUM_BYTES or crc32c(body) != int.from_bytes(tail, "little"):
        raise DamagedChunkError("its bytes do not match their checksum")
    if checksum_text(tail) != expected:
        raise DamagedChunkError("another chunk lies in its place: its checksum is not the ledger's")
    packed, header = len(body), body[:BLOSC_HEADER].tobytes()
    sizes = [int.from_bytes(header[i : i + 4], "little") for i in (4, 12, 8)]
    wanted = [spec.chunk_bytes, packed], spec.dtype.itemsize
    # blosc believes its header, which it may not: it makes room for, and reads, as much as that says.
    sound = len(header) == BLOSC_HEADER and (sizes[:2], header[3]) == wanted and 0 < sizes[2] <= sizes[0]
    if not (sound if spec.compress else packed == spec.chunk_bytes):
        raise DamagedChunkError(f"it does not unpack to {spec.chunk_bytes} bytes")


def _opened(spec: ArraySpec, store: ZarrStore, pipeline: str) -> zarr.Array[Any]:
    with _CHOICE, zarr.config.set({"codec_pipeline.path": pipeline}):
        return spec.open(store)


@cache
def _zarrs_process() -> int:
    """The process in which zarrs decodes, the first that asks; 0 where zarrs is not installed.

    One that is forked from it would wait for ever for threads that it doesn't have.
    """
    try:
        import zarrs  # noqa: F401
    except ImportError:
        return 0
    return os.getpid()


class _Here(ThreadPoolExecutor):
    """Runs what it is given at once, in the thread that asks."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


def _slice(array: zarr.Array[Any], region: Region) -> Array:
    """array[region], in this thread.

    zarr takes a slice through one thread for its event loop and another for decoding, which costs more than
    decoding a small one. A thread that runs a loop already, as a notebook's does, has no other way.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        return np.asarray(array[region])
    try:
        loop = _LOOPS.pop()
    except IndexError:
        loop = asyncio.new_event_loop()
        loop.set_default_executor(_Here(max_workers=1))
    try:
        values = loop.run_until_complete(array.async_array.getitem(region))
    except BaseException:
        loop.close()
        raise
    _LOOPS.append(loop)
    return np.asarray(values)


@atexit.register
def _close() -> None:
    while _LOOPS:
        _LOOPS.pop().close()


def read_spec(source: Source, name: str, record: FileRecord | None) -> ArraySpec:
    """The metadata of one array, checked against its ledger record.

    Raises:
        StoreError: there is no such array, or its metadata is damaged or of no array that a store keeps.
    """
    if record is None:
        raise StoreError(
            f"There is no array {name!r} in the store at {source.name}.",
            expected="one of Store.array_names()",
            given=repr(name),
            next_step="Choose one of the names, or name it in the study file and compute another store.",
        )
    return ArraySpec.from_metadata(name, read_metadata(source, name, record))


def read_metadata(source: Source, name: str, record: FileRecord) -> bytes:
    """The zarr.json of a group or array ("" is the root), as the ledger has it.

    Raises:
        StoreError: it is missing or damaged.
    """
    path = f"{name}/{METADATA}".lstrip("/")
    data = source.read(path)
    if data is None or not record.describes(data):
        source.forget([path])
        found = "no file" if data is None else "other bytes"
        raise damaged(f"{name or 'all'} of {source.name}", f"its metadata ({METADATA})", found)
    return data


def check_spec(source: Source, spec: ArraySpec, size: int) -> None:
    """Refuses an array written once whose shape cannot be that of its one shard file.

    Args:
        size: of the shard in bytes, 0 where there is none.
    """
    one = all(
        shard == -(-max(1, length) // chunk) * chunk
        for length, shard, chunk in zip(spec.shape, spec.shard, spec.chunk, strict=True)
    )
    number, most = spec.chunks_per_shard, MOST_EXPANSION * size if spec.compress else size
    fits = index_bytes(number) <= size and number * spec.chunk_bytes <= most
    if not one or (0 in spec.shape) != (size == 0) or (size and (not fits or spec.chunk_bytes > CHUNK_LIMIT)):
        raise damaged(
            f"{spec.name} of {source.name}",
            f"its metadata ({METADATA})",
            f"shape {spec.shape} of {spec.dtype} in chunks {spec.chunk}",
            f"an array that a shard of {size} bytes can hold",
        )


def unknown(what: str, given: object, known: str) -> StoreError:
    """The error for something that was not captured."""
    return StoreError(
        f"There is no such {what}.",
        expected=known,
        given=repr(given),
        next_step="Choose one that was captured, or add it to the study file and compute another store.",
    )


def whole_chunks(rows: Array, width: int, size: int) -> list[tuple[int, int]]:
    """Ranges of whole chunks of `width` rows (of `size` in all) that hold the ascending `rows`."""
    chunks = np.unique(rows // width)
    breaks = np.flatnonzero(np.diff(chunks) > 1) + 1
    groups = np.split(chunks, breaks) if len(chunks) else []
    return [(int(g[0]) * width, min((int(g[-1]) + 1) * width, size)) for g in groups]
