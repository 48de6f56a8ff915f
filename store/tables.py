"""Tables as a store keeps them: Parquet whose columns, dtypes and number of rows are what was written."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import polars as pl
from polars.exceptions import PanicException, PolarsError

from engine.errors import StoreError
from engine.parquet_pages import check_pages
from store.strict import REPAIR

MOST_ROWS = 1 << 28
MOST_VALUES = 1 << 32
TEXT, REAL, WORDS = pl.String, pl.Float64, pl.List(pl.String)
I32, I64, NUMBERS = pl.Int32, pl.Int64, pl.List(pl.Int32)
Columns = Mapping[str, pl.DataType | type[pl.DataType]]

ROWS: Columns = {"prompt": I32, "row_start": I64, "row_count": I32, "array_row": I64}
"""Of a table that maps prompts to rows."""
DELTA: Columns = {
    "name": TEXT,
    "layer": I64,
    "shape": pl.List(I64),
    "norm": REAL,
    "relative": REAL,
    "rows": I64,
    "tuned": REAL,
}
_PROMPTS: Columns = {
    **dict.fromkeys(("pair_id", "language", "category", "split", "answer", "label"), TEXT),
    "generated_answer": TEXT,
    "generated_by": TEXT,
    "generated_ended": pl.Boolean,
    "choices": WORDS,
    "messages": pl.List(pl.Struct({"role": TEXT, "content": TEXT})),
    "message_fields": TEXT,
}
_TOKENS: Columns = {
    "id": TEXT,
    "rendered": TEXT,
    "offsets": pl.List(NUMBERS),
    **{f"{part}_{side}": I32 for part in ("content", "answer", "assistant") for side in ("start", "end")},
}
_KNOWN: tuple[tuple[str, Columns, Columns, bool], ...] = (
    (r"prompts", {"id": TEXT, "text": TEXT}, _PROMPTS, True),
    (
        r"generated-answers",
        {"id": TEXT, "token_ids": NUMBERS, "ended": pl.Boolean, "text": TEXT},
        {},
        False,
    ),
    (r"tokens-.+", {"token_ids": NUMBERS}, _TOKENS, True),
    (r"positions-.+", {}, {}, True),
    (r"vocabulary-.+", {"token_id": I32, "token": TEXT, "text": TEXT}, {"missing_in": WORDS}, False),
    (
        r"shared-vocabulary",
        {"a": TEXT, "b": TEXT},
        {"n_a": I64, "n_b": I64, "shared": I64, "same_id": I64},
        False,
    ),
    (r"rows-.+", ROWS, {}, True),
    (r"gram-prompts", {"prompt": I32}, {}, False),
    (
        r"weight-delta-heads-.+",
        {"name": TEXT, "layer": I64, "part": TEXT, "head": I64, "share": REAL},
        {"low": REAL, "high": REAL, "p": REAL},
        False,
    ),
    (r"weight-delta-.+", {"name": TEXT}, DELTA, False),
    (r"weight-norms", {"name": TEXT, "norm": REAL}, {"layer": I64, "shape": pl.List(I64)}, False),
)
"""(name, columns that must be there, columns whose dtype is known, whether there is a row per prompt)."""


def read_table(data: bytes, name: str, prompts: int | None = None) -> pl.DataFrame:
    """The table in a Parquet file, whatever its bytes are.

    Args:
        name: the table, for its columns and the message.
        prompts: how many prompts the store has; tables with a row per prompt must have as many.

    Raises:
        StoreError: not Parquet, or other columns, dtypes or rows than a store's table has.
    """
    try:
        check_pages(data)
        lazy = pl.scan_parquet(io.BytesIO(data))
        schema = lazy.collect_schema()
        height = int(lazy.select(pl.len()).collect().item())
        _check(name, schema, height, prompts)
        table = pl.read_parquet(io.BytesIO(data))
        _check(name, table.schema, table.height, prompts)
    except (PolarsError, PanicException, OSError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise _refused(name, "a Parquet file", f"{type(error).__name__}: {error}") from error
    return table


def _check(name: str, schema: pl.Schema, height: int, prompts: int | None) -> None:
    if height > MOST_ROWS or height * max(1, len(schema)) > MOST_VALUES:
        raise _refused(name, "a table that fits into memory", f"{height} rows of {len(schema)} columns")
    for pattern, needed, known, per_prompt in _KNOWN:
        if re.fullmatch(pattern, name) is None:
            continue
        missing = [column for column in needed if column not in schema]
        if missing:
            raise _refused(name, f"the columns {', '.join(needed)}", f"none named {', '.join(missing)}")
        for column, dtype in {**known, **needed}.items():
            if column in schema and schema[column] not in (dtype, pl.Null):
                raise _refused(name, f"{dtype} in column {column}", f"{schema[column]}")
        if per_prompt and prompts is not None and height != prompts:
            raise _refused(name, f"{prompts} rows, one for each prompt of the manifest", f"{height} rows")
        return


def check_rows(table: pl.DataFrame, name: str, size: int) -> pl.DataFrame:
    """A table of rows (`ROWS`) whose rows lie one after another, inside an array of `size` rows.

    Raises:
        StoreError: they do not.
    """
    counts, starts = table["row_count"].cast(pl.Int64), table["row_start"]
    sound = (
        not any(table[column].null_count() for column in ROWS)
        and (counts >= 0).all()
        and table["prompt"].cast(pl.Int64).equals(pl.Series("prompt", range(len(table)), pl.Int64))
        and starts.equals((counts.cum_sum() - counts).rename("row_start"))
        and ((table["array_row"] >= 0) & (table["array_row"] + counts <= size)).all()
    )
    if not sound:
        raise _refused(name, f"rows one after another within the {size} of the array", "other rows")
    return table


def check_sample(rows: pl.Series, name: str, prompts: int) -> pl.Series:
    """Numbers of some of the `prompts`, ascending.

    Raises:
        StoreError: they are not.
    """
    ascending = rows.is_between(0, prompts - 1) & (rows.cast(pl.Int64).diff().fill_null(1) > 0)
    if rows.null_count() or not ascending.all():
        raise _refused(name, f"ascending numbers below {prompts}", str(rows.to_list()))
    return rows


def _refused(name: str, expected: str, given: str) -> StoreError:
    return StoreError(
        f"Table {name} is not as a store keeps it.",
        expected=expected,
        given=given[:300].encode(errors="replace").decode(),
        next_step=REPAIR,
    )
