"""What the pages of a Parquet file will take in memory, read from their headers before one is decompressed.

A reader makes room for what a page's own header says, whatever the file's footer says of the column: a few
kilobytes may ask for gigabytes. Headers are Thrift's compact protocol (Apache Parquet format 2.11,
`parquet.thrift`: PageHeader, DataPageHeader, DictionaryPageHeader, DataPageHeaderV2).
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq

MOST_BYTES = 1 << 33
"""Of all columns of a file together, decompressed."""
MOST_RATIO, FREE_BYTES = 4096, 1 << 28
"""Beyond `FREE_BYTES`, no table of a store decompresses to more than this many times its size."""
_DEEPEST = 8
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8


def check_pages(data: bytes) -> None:
    """Refuses a Parquet file whose pages claim more than its footer, or more than fits.

    Raises:
        ValueError: they do, or the headers are not Parquet's.
        OSError: the footer isn't Parquet's (pyarrow's ArrowInvalid is a ValueError, too).
    """
    footer = pq.read_metadata(io.BytesIO(data))
    total = 0
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            total += _column(data, footer.row_group(group).column(column))
    if total > MOST_BYTES or total > max(FREE_BYTES, MOST_RATIO * len(data)):
        raise ValueError(f"{len(data):,} bytes that decompress to {total:,}")


def _column(data: bytes, chunk: Any) -> int:
    """Decompressed bytes of a column chunk by its page headers."""
    if not chunk.num_values:
        return 0
    starts = [chunk.data_page_offset]
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        starts.append(chunk.dictionary_page_offset)
    at, end = min(starts), min(starts) + chunk.total_compressed_size
    if not 0 < at <= end <= len(data):
        raise ValueError(f"column {chunk.path_in_schema} lies outside the file")
    size, values = 0, 0
    while at < end:
        header, after = _struct(data, at)
        page, packed = header.get(_UNCOMPRESSED), header.get(_COMPRESSED)
        if not isinstance(page, int) or not isinstance(packed, int) or page < 0 or packed < 0:
            raise ValueError(f"a page of column {chunk.path_in_schema} has no size")
        size += page + after - at
        for kind in (_DATA, _DATA_V2):
            if isinstance(header.get(kind), dict):
                values += int(header[kind].get(1, -1))
        at = after + packed
    if at != end or size > chunk.total_uncompressed_size or values != chunk.num_values:
        raise ValueError(
            f"the pages of column {chunk.path_in_schema} hold {values:,} values in {size:,} bytes; "
            f"its footer says {chunk.num_values:,} in {chunk.total_uncompressed_size:,}"
        )
    return size


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A Thrift struct by field number, and where it ends."""
    if depth > _DEEPEST:
        raise ValueError("a page header is too deep")
    found: dict[int, Any] = {}
    number = 0
    while True:
        byte, at = _byte(data, at)
        if byte == 0:
            return found, at
        step, kind = byte >> 4, byte & 15
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        found[number], at = _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind == _BYTE:
        return _byte(data, at)
    if kind in (_I16, _I32, _I64):
        return _integer(data, at)
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    raise ValueError("a page header holds what no page header has")


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("a page header ends behind the file")
    return data[at], at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte, at = _byte(data, at)
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number of a page header has no end")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
