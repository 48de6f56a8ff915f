"""Pages of Parquet files: what they will take in memory is known before one of them is decompressed."""

from __future__ import annotations

import contextlib
import io
import random

import polars as pl
import pyarrow.parquet as pq
import pytest

from engine import parquet_pages
from engine.errors import StoreError
from engine.parquet_pages import check_pages
from store.tables import read_table

ROWS = 500_000


def parquet(frame: pl.DataFrame, **how: object) -> bytes:
    data = io.BytesIO()
    frame.write_parquet(data, **how)  # type: ignore[arg-type]
    return data.getvalue()


def varint(value: int) -> bytes:
    """A zigzag varint of a value that is not negative."""
    value, found = 2 * value, b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


@pytest.fixture(scope="module")
def whole() -> bytes:
    """One column, 4 MB of numbers that compress well."""
    frame = pl.DataFrame({"a": pl.arange(0, ROWS, eager=True) // 1000})
    return parquet(
        frame,
        row_group_size=ROWS,
        data_page_size=1 << 30,
        use_pyarrow=True,
        pyarrow_options={"use_dictionary": False},
    )


FRAMES = {
    "numbers": pl.DataFrame({"a": range(1000), "b": [None, 1.5] * 500}),
    "lists and structs": pl.DataFrame(
        {"w": [["x", "yy"], []] * 50, "m": [[{"role": "u", "content": None}]] * 100}
    ),
    "no rows": pl.DataFrame(schema={"a": pl.String, "b": pl.List(pl.Int32)}),
    "constant": pl.DataFrame({"a": [0] * 1_000_000}),
}


@pytest.mark.parametrize(
    "how", [{}, {"compression": "uncompressed"}, {"use_pyarrow": True}, {"row_group_size": 100}]
)
@pytest.mark.parametrize("name", FRAMES)
def test_files_as_they_are_written_pass(name: str, how: dict[str, object]) -> None:
    data = parquet(FRAMES[name], **how)
    check_pages(data)
    assert read_table(data, "anything").equals(FRAMES[name])


def test_a_page_that_claims_more_than_the_footer_is_refused(whole: bytes) -> None:
    column = pq.read_metadata(io.BytesIO(whole)).row_group(0).column(0)
    header, after = parquet_pages._struct(whole, column.data_page_offset)
    said = varint(header[2])
    at = whole.index(said, column.data_page_offset, after)
    forged = whole[:at] + varint(1_000_000) + whole[at + len(said) :]
    assert len(forged) == len(whole)
    with pytest.raises(StoreError, match="its footer says"):
        read_table(forged, "anything")


def test_pages_of_more_values_than_the_footer_says_are_refused(whole: bytes) -> None:
    column = pq.read_metadata(io.BytesIO(whole)).row_group(0).column(0)
    header, after = parquet_pages._struct(whole, column.data_page_offset)
    said = varint(header[5][1])
    at = whole.index(said, column.data_page_offset, after)
    with pytest.raises(ValueError, match="its footer says"):
        check_pages(whole[:at] + varint(header[5][1] + 1) + whole[at + len(said) :])


def test_a_small_file_of_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch, whole: bytes) -> None:
    monkeypatch.setattr(parquet_pages, "MOST_BYTES", 1_000_000)
    with pytest.raises(StoreError, match="decompress to"):
        read_table(whole, "anything")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_are_refused_or_harmless(whole: bytes, seed: int) -> None:
    """Whatever bytes stand in the header: an answer or a refusal, at once."""
    pick = random.Random(seed)
    column = pq.read_metadata(io.BytesIO(whole)).row_group(0).column(0)
    _, after = parquet_pages._struct(whole, column.data_page_offset)
    data = bytearray(whole)
    for _ in range(3):
        data[pick.randrange(column.data_page_offset, after)] = pick.randrange(256)
    with contextlib.suppress(ValueError):
        check_pages(bytes(data))
