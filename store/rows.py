"""Tables of a store: their names, and which rows of an array belong to which prompt."""

from __future__ import annotations

import re

import polars as pl

from engine.errors import StoreError
from store.layout import slug
from store.plan import StorePlan

GRAM_PROMPTS = "gram-prompts"
"""Table of the prompts that Grams are of, where they are a sample."""


def table_path(name: str) -> str:
    """Path of a table inside the store."""
    return f"tables/{name}.parquet"


def rows_table_name(model: str, position: str) -> str:
    """Name of the table that maps prompts to rows, for a position with many rows per prompt."""
    return f"rows-{slug(model)}-{slug(position)}"


def check_table_name(name: str) -> None:
    """Refuses a table name that is not a plain file name."""
    if not re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII):
        raise StoreError(
            f"A table cannot be called {name!r}.",
            expected="letters, digits, '_', '.', '-'",
            given=repr(name),
            next_step="Choose a plain name.",
        )


def row_table(plan: StorePlan, model: str, position: str) -> pl.DataFrame:
    """One line per prompt of a position with many rows.

    Returns:
        prompt; row_start and row_count: its rows in what `Store.activations` returns, where prompts
        follow each other without gaps; array_row: its first row in the Zarr array, where every unit
        begins at a whole shard.
    """
    counts = (plan.positions[position].row_counts or {})[model]
    reserved = plan.rows_per_unit(model, position)
    array_rows: list[int] = []
    for unit in range(plan.n_units):
        at = unit * reserved
        for prompt in plan.prompts_of(unit):
            array_rows.append(at)
            at += counts[prompt]
    table = pl.DataFrame(
        {"prompt": range(plan.n_prompts), "row_count": list(counts), "array_row": array_rows},
        schema={"prompt": pl.Int32, "row_count": pl.Int32, "array_row": pl.Int64},
    )
    start = (pl.col("row_count").cast(pl.Int64).cum_sum() - pl.col("row_count")).alias("row_start")
    return table.select("prompt", start, "row_count", "array_row")
