"""Zarr v3 shards: encoded directly, and where each chunk lies in one.

A shard is the file of the `sharding_indexed` codec: the encoded inner chunks one after another,
then the index: for every inner chunk in C order its offset and length as two little-endian
uint64 (both 2**64 - 1 when the chunk is absent), then the CRC-32C of the index. An inner chunk is
little-endian bytes, blosc (lz4, level 5, bit shuffle) unless the array says otherwise, and the
CRC-32C of the result. zarr, zarrs and tensorstore write and read the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from numcodecs import blosc

from store.files import crc32c

# Several blosc threads write their blocks in whatever order they finish, and the bytes would differ
# from run to run. zarr switches them off on import too.
blosc.use_threads = False

ABSENT = np.uint64(2**64 - 1)
CHECKSUM_BYTES = 4
NO_CHUNK = "--------"
BLOSC_HEADER = 16
CNAME, CLEVEL = "lz4", 5
CODEC = {"cname": CNAME, "clevel": CLEVEL, "shuffle": "bitshuffle"}

Array = np.ndarray[Any, Any]
T = TypeVar("T")
R = TypeVar("R")


class DamagedChunkError(ValueError):
    """A chunk or an index whose bytes do not match their checksum."""


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="patchbay-shard")


def parallel(function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
    """`map` in order, over a few threads where the machine has more than two cores."""
    if (os.cpu_count() or 1) <= 2 or len(items) < 4:
        return map(function, items)
    return _pool().map(function, items)


def encode_chunk(chunk: Array, *, compress: bool = True) -> list[bytes]:
    """One inner chunk (any shape, C-contiguous) as [encoded bytes, CRC-32C]."""
    if compress:
        body: bytes = blosc.compress(chunk, CNAME.encode(), CLEVEL, blosc.BITSHUFFLE, 0)
    else:
        body = chunk.tobytes()
    return [body, google_crc32c.value(body).to_bytes(CHECKSUM_BYTES, "little")]


class ShardEncoder:
    """The parts of a shard file, in order, each made when it is asked for; iterate it once.

    Args:
        chunks: for every inner chunk in C order over the shard's grid: a function that returns it, whole and
            C-contiguous (called on the thread that encodes it), or None where the chunk is absent.
        compress: whether the array's codecs hold blosc.

    Attributes:
        checksums: after the last part: CRC-32C of every inner chunk as 8 hex digits, "--------" where absent.
    """

    def __init__(self, chunks: Sequence[Callable[[], Array] | None], *, compress: bool = True) -> None:
        self.chunks, self.compress, self.checksums = chunks, compress, ""

    def __iter__(self) -> Iterator[bytes]:
        index = np.full((len(self.chunks), 2), ABSENT, dtype="<u8")
        found, offset = [NO_CHUNK] * len(self.chunks), 0
        for number, chunk in enumerate(parallel(self._encode, self.chunks)):
            if chunk is not None:
                length = sum(map(len, chunk))
                index[number] = offset, length
                offset += length
                found[number] = checksum_text(chunk[1])
                yield from chunk
        table = index.tobytes()
        yield from (table, crc32c(table).to_bytes(CHECKSUM_BYTES, "little"))
        self.checksums = "".join(found)

    def _encode(self, chunk: Callable[[], Array] | None) -> list[bytes] | None:
        return None if chunk is None else encode_chunk(chunk(), compress=self.compress)


def checksum_text(checksum: bytes) -> str:
    """The last four bytes of an inner chunk as the ledger writes them."""
    return f"{int.from_bytes(checksum, 'little'):08x}"


def shard_checksums(data: bytes, index: ShardIndex) -> str:
    """What `ShardEncoder.checksums` would be of a whole shard file."""
    spans = (index.span(number) for number in range(len(index.table)))
    return "".join(
        NO_CHUNK if span is None else checksum_text(data[sum(span) - CHECKSUM_BYTES : sum(span)])
        for span in spans
    )


def index_bytes(chunks: int) -> int:
    """Length of the index of a shard with this many inner chunks."""
    return 16 * chunks + CHECKSUM_BYTES


@dataclass(frozen=True)
class ShardIndex:
    """Where each inner chunk of one shard file lies: `table` (chunks, 2) of offset and length."""

    table: Array

    @classmethod
    def parse(cls, tail: bytes, chunks: int, file_size: int) -> ShardIndex:
        """Reads the last `index_bytes(chunks)` bytes of a shard file of `file_size` bytes.

        Raises:
            DamagedChunkError: wrong length, wrong checksum, or chunks outside the file.
        """
        if len(tail) != index_bytes(chunks):
            raise DamagedChunkError(f"the index has {len(tail)} of {index_bytes(chunks)} bytes")
        body = tail[:-CHECKSUM_BYTES]
        if crc32c(body) != int.from_bytes(tail[-CHECKSUM_BYTES:], "little"):
            raise DamagedChunkError("the index does not match its checksum")
        table = np.frombuffer(body, "<u8").reshape(-1, 2)
        present = table[table[:, 0] != ABSENT]
        room = np.uint64(file_size - len(tail))
        outside = (present > room).any() or (present.sum(axis=1) > room).any()
        if outside or (present[:, 1] <= CHECKSUM_BYTES).any():
            raise DamagedChunkError("the index points behind the end of the file, or at nothing")
        return cls(table)

    def span(self, number: int) -> tuple[int, int] | None:
        """(offset, length) of an inner chunk, or None when it is absent."""
        offset, length = self.table[number]
        return None if offset == ABSENT else (int(offset), int(length))
