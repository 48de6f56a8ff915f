"""Raw rows of prompt files and Hugging Face datasets; every file is bounded, and may be anything inside."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.parquet_pages import check_pages
from engine.prompts.spec import PromptSource
from engine.reading import parse_json, read_bounded

__all__ = ["read_source"]

LARGEST = 1 << 30
MOST_ROWS = 10_000_000
"""Bytes and rows of a prompt file."""
Raws = Iterator[tuple[Any, str]]


def read_source(source: PromptSource, columns: Mapping[Any, str | int]) -> Raws:
    """Raw rows of a source; the keys of a file without a header are positions from 1."""
    if source.path is None:
        yield from _dataset(source)
        return
    path, headless = source.path, any(isinstance(place, int) for place in columns.values())
    if not path.is_file():
        raise PromptsError(
            "A prompt file isn't there.",
            expected="a file",
            given=str(path),
            next_step="correct prompts.files.",
        )
    readers: dict[str, Callable[[Path], Raws]] = {
        ".jsonl": _jsonl,
        ".json": lambda path: _json(path, source.key),
        ".csv": lambda path: _csv(path, ",", headless),
        ".tsv": lambda path: _csv(path, "\t", headless),
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise PromptsError(
            f"The prompt file {path.name} has an unknown format.",
            expected=", ".join(readers),
            given=path.suffix or "no suffix",
            next_step="save the prompts in one of these formats.",
        )
    yield from readers[path.suffix](path)


def _jsonl(path: Path) -> Raws:
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            yield parse_json(line), where
        except ValueError as error:
            raise PromptsError(
                f"{where} is not JSON.",
                expected="one JSON object per line",
                given=str(error)[:300],
                next_step="mend that line, or save the file again as JSON lines.",
            ) from None


def _text_of(path: Path) -> str:
    try:
        return read_bounded(path, LARGEST).decode("utf-8-sig")
    except ValueError as error:
        raise _unreadable(path, error) from None


def _json(path: Path, key: str | None) -> Raws:
    """A list of objects or of texts, by itself or under `key` of an object."""
    try:
        data = parse_json(_text_of(path))
    except ValueError as error:
        raise _unreadable(path, error) from None
    lists = {name: value for name, value in data.items() if isinstance(value, list)} if _is_dict(data) else {}
    found = data if key is None else lists.get(key)
    if not isinstance(found, list):
        raise PromptsError(
            f"{path.name} holds no list of prompts" + ("." if key is None else f" under {key!r}."),
            expected="a JSON list, or an object with the list's key named in the study",
            given="an object with the lists " + ", ".join(lists) if lists else type(data).__name__,
            next_step=f'name it: {{path = "{path.name}", key = "{next(iter(lists))}"}}.'
            if lists
            else "write the prompts as a list of objects.",
        )
    for number, value in enumerate(found, start=1):
        yield {"text": value} if isinstance(value, str) else value, f"{path.name} entry {number}"


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _csv(path: Path, separator: str, headless: bool) -> Raws:
    table = _table(
        path,
        lambda data: pl.read_csv(data, separator=separator, infer_schema=False, has_header=not headless),
    )
    if headless:
        table.columns = [f"column_{place}" for place in range(1, table.width + 1)]
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield row, f"{path.name} row {number}"


def _parquet(path: Path) -> Raws:
    for number, row in enumerate(_table(path, _parquet_table).iter_rows(named=True), start=1):
        yield row, f"{path.name} row {number}"


def _parquet_table(data: bytes) -> pl.DataFrame:
    from pyarrow import parquet

    told = parquet.ParquetFile(io.BytesIO(data)).metadata
    size = sum(told.row_group(i).total_byte_size for i in range(told.num_row_groups))
    if told.num_rows > MOST_ROWS or size > LARGEST:
        raise ValueError(f"{told.num_rows:,} rows of {size:,} bytes; at most {MOST_ROWS:,} of {LARGEST:,}")
    check_pages(data)
    return pl.read_parquet(data)


def _table(path: Path, read: Callable[[bytes], pl.DataFrame]) -> pl.DataFrame:
    """A table from a file's bytes: by its name, a reader would take it for a pattern or an address."""
    try:
        return read(read_bounded(path, LARGEST))
    except BaseException as error:  # the readers are in Rust and C++: damaged files raise what they please
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable(path, error) from None


def _dataset(source: PromptSource) -> Raws:
    """One split of a dataset on the Hugging Face Hub, or of its copy in the local cache."""
    try:
        import datasets
    except ImportError:
        raise PromptsError(
            f"The dataset {source.dataset!r} needs the library 'datasets'.",
            expected="the package datasets",
            given="not installed",
            next_step="pip install 'patchbay[datasets]', or save the prompts as Parquet or JSONL.",
        ) from None
    try:
        found = datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision
        )
    except Exception as error:  # of a stranger's files, the library raises what it pleases
        raise PromptsError(
            f"The dataset {source.dataset!r} cannot be loaded.",
            expected="an id, config, split and revision that the Hub or the local cache has",
            given=" ".join(str(error).split())[:300],
            next_step="check them and the connection; offline, name a downloaded file with 'path' instead.",
        ) from None
    for number, row in enumerate(found, start=1):
        yield dict(row), f"{source.title} row {number}"


def _unreadable(path: Path, error: BaseException) -> PromptsError:
    return PromptsError(
        f"The prompt file {path.name} cannot be read.",
        expected=f"UTF-8 text or Parquet as its suffix {path.suffix} says",
        given=" ".join(str(error).split())[:200],
        next_step="save it again in that format.",
    )
