"""The command that makes a store of activations from files."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import polars as pl

from app.imported.files import read_arrays
from app.imported.store import import_arrays
from engine.errors import StoreError
from engine.prompts.read import read_source
from engine.prompts.spec import PromptSource, PromptsSpec
from engine.prompts.table import assign_splits, read_prompts
from store.reader import Store
from store.sources import check_writable, open_source

__all__ = ["import_files", "prompts_table"]

VALIDATION = 0.35


def import_files(options: argparse.Namespace) -> Store:
    """Carries out `import`; raises PatchbayError as reading prompts and `import_arrays` do."""
    check_writable(open_source(options.store))
    prompts = prompts_table(options.prompts)
    arrays = {}
    for given in options.model:
        name, equals, file = given.partition("=")
        if not equals or not file or name in arrays:
            raise StoreError(
                "A model is named once, with its file.", expected="--model NAME=FILE", given=given
            )
        arrays[name] = read_arrays(Path(file))
    return import_arrays(
        options.store,
        arrays,
        prompts,
        name=options.name,
        position=options.position,
        token=_token(options.token, prompts),
        dtype=options.dtype,
        quiet=False,
    )


def prompts_table(given: str | Path | pl.DataFrame | Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Prompts from a file, a table or rows: read, checked and split as a study's are.

    Ids are made of the row where the first row has none; splits by pair, in equal shares of each category,
    where they aren't given.

    Raises:
        PromptsError: as `engine.prompts.table.read_prompts`.
    """
    if not isinstance(given, str | Path):
        rows = given.to_dicts() if isinstance(given, pl.DataFrame) else list(given)
        with TemporaryDirectory(prefix="patchbay-prompts-") as folder:
            file = Path(folder) / "prompts.jsonl"
            file.write_text("\n".join(map(_json, rows)), encoding="utf-8")
            return prompts_table(file)
    source = PromptSource(path=Path(given))
    first: Any = next(iter(read_source(source, {})), ({}, ""))[0]
    ids: Literal["given", "row"] = "given" if isinstance(first, Mapping) and "id" in first else "row"
    return assign_splits(read_prompts(PromptsSpec(files=(source,), ids=ids)), VALIDATION, 0)


def _json(row: Any) -> str:
    """A row as a line of JSON; a text alone is its `text`, what is no number is nothing."""
    if not isinstance(row, str | Mapping):
        raise StoreError(
            "A prompt is a text or a row.", expected="a text, or a mapping", given=repr(row)[:80]
        )
    cells = {"text": row} if isinstance(row, str) else dict(row)
    undefined = {key for key, value in cells.items() if isinstance(value, float) and math.isnan(value)}
    kept = {str(key): None if key in undefined else value for key, value in cells.items()}
    return json.dumps(kept, default=_plain)


def _plain(value: Any) -> Any:
    """A number of numpy as Python's, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _token(given: str | None, prompts: pl.DataFrame) -> int | list[int] | None:
    """A number, or what a column of the prompts says."""
    if given is None:
        return None
    try:
        return int(given)
    except ValueError:
        if given not in prompts.columns:
            raise StoreError(
                "There is no such token.", expected="a number, or a column of the prompts", given=given
            ) from None
    try:
        return [int(value) for value in prompts[given]]
    except (TypeError, ValueError):
        raise StoreError(
            f"The column {given} doesn't name a token of every prompt.",
            expected="a whole number in each row",
            given=", ".join(map(str, prompts[given].head(5).to_list())),
        ) from None
