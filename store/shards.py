"""Zarr v3 shards, encoded and decoded directly.

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


def encode_shard(chunks: Sequence[Callable[[], Array] | None], *, compress: bool = True) -> Iterator[bytes]:
    """The parts of a shard file, in order, each made when it is asked for.

    Args:
        chunks: for every inner chunk in C order over the shard's grid: a function that returns it, whole and
            C-contiguous (called on the thread that encodes it), or None where the chunk is absent.
        compress: whether the array's codecs hold blosc.
    """

    def encode(chunk: Callable[[], Array] | None) -> list[bytes] | None:
        return None if chunk is None else encode_chunk(chunk(), compress=compress)

    index = np.full((len(chunks), 2), ABSENT, dtype="<u8")
    offset = 0
    for number, chunk in enumerate(parallel(encode, chunks)):
        if chunk is not None:
            length = sum(map(len, chunk))
            index[number] = offset, length
            offset += length
            yield from chunk
    table = index.tobytes()
    yield from (table, crc32c(table).to_bytes(CHECKSUM_BYTES, "little"))


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
        if len(present) and int(present.sum(axis=1).max()) > file_size - len(tail):
            raise DamagedChunkError("the index points behind the end of the file")
        return cls(table)

    def span(self, number: int) -> tuple[int, int] | None:
        """(offset, length) of an inner chunk, or None when it is absent."""
        offset, length = self.table[number]
        return None if offset == ABSENT else (int(offset), int(length))


def decode_chunk(data: Array, out: Array, *, compress: bool = True) -> None:
    """Decodes one inner chunk into `out` (C-contiguous, its exact shape and dtype).

    Args:
        data: the chunk's bytes as uint8, checksum included.

    Raises:
        DamagedChunkError: the checksum or the decoded length is wrong.
    """
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if len(data) <= CHECKSUM_BYTES or google_crc32c.value(body) != int.from_bytes(
        checksum.tobytes(), "little"
    ):
        raise DamagedChunkError("its bytes do not match their checksum")
    if not compress:
        if len(body) != out.nbytes:
            raise DamagedChunkError(f"it holds {len(body)} of {out.nbytes} bytes")
        out.reshape(-1).view(np.uint8)[:] = body
        return
    try:
        blosc.decompress(body, out)
    except (RuntimeError, ValueError) as error:
        raise DamagedChunkError(f"blosc cannot decode it ({error})") from error
