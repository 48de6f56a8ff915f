"""Which prompts are used and how, beyond a study's filters: what is dropped, filled in, or left unused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.prompts.span_spec import SpanPosition
from engine.prompts.spans import lacking
from engine.prompts.spec import ROLES, PromptsSpec

__all__ = ["check_one_vocabulary", "fitting", "left", "placed", "unused_columns", "with_texts"]

NAMED = 20
"""Prompts named in a remark."""


def fitting(encoded: Mapping[str, pl.DataFrame], most: Mapping[str, int], remarks: list[str]) -> list[int]:
    """Ascending rows of the prompts that every model can take; the others are counted and named.

    Args:
        encoded: per model, from `engine.prompts.tokens.encode` (which refuses them, unless they are dropped).
        most: per model, its context in tokens.
        remarks: gets those that name the prompts dropped.

    Raises:
        PromptsError: none is left.
    """
    names = next(iter(encoded.values()))["id"]
    long = pl.Series([False] * len(names), dtype=pl.Boolean)
    refused = long
    for name, frame in encoded.items():
        counts = frame["token_ids"].list.len().cast(pl.Int64)
        long, refused = long | (counts > most[name]), refused | (counts == 0)
    kept = left(names, long, "are longer than a model's context", remarks)
    return sorted(set(kept) & set(left(names, refused, "can't be rendered", remarks)))


def placed(
    encoded: Mapping[str, pl.DataFrame],
    table: pl.DataFrame,
    positions: Sequence[str | SpanPosition],
    remarks: list[str],
) -> list[int]:
    """Ascending rows of the prompts that have every position in every model; the others are named.

    Args:
        encoded, remarks: as in `fitting`. table: the same prompts, from `read_prompts`.
    """
    rows = set(range(table.height))
    for position in positions:
        lost = pl.Series([False] * table.height, dtype=pl.Boolean)
        for frame in encoded.values():
            lost = lost | lacking(frame, table, position)
        name = position if isinstance(position, str) else position.name
        rows &= set(left(table["id"], lost, f"lack the position {name!r}", remarks))
    return sorted(rows)


def left(names: pl.Series, dropped: pl.Series, why: str, remarks: list[str]) -> list[int]:
    """Ascending rows that are not dropped; a remark counts and names the others. PromptsError for none."""
    lost = names.filter(dropped).to_list()
    if lost and len(lost) == len(names):
        raise PromptsError(
            f"No prompt is left: all {why}.",
            expected="at least two that the study can use",
            given=f"{len(lost)} dropped",
            next_step="correct the prompts, or what the study asks of them.",
        )
    if lost:
        named = ", ".join(map(repr, lost[:NAMED])) + (" …" if len(lost) > NAMED else "")
        remarks.append(f"{len(lost)} of {len(names)} {why} and are dropped: {named}")
    return [int(row) for row in (~dropped).arg_true()]


def unused_columns(table: pl.DataFrame, spec: PromptsSpec) -> list[str]:
    """Remarks on columns that could say how prompts are rendered, but that the study doesn't use."""
    return [
        f'the column {name!r} is kept but changes no prompt; columns = {{ {name} = "{name}" }} uses it'
        for name in ROLES
        if name in table.columns and name not in spec.roles
    ]


def check_one_vocabulary(table: pl.DataFrame, tokenizers: Mapping[str, Any]) -> None:
    """PromptsError for prompts given as token ids where the models' tokenizers number tokens differently."""
    if "token_ids" not in table.columns or table.schema["token_ids"] == pl.String:
        return
    (first, one), *others = tokenizers.items()
    unlike = [name for name, other in others if other.get_vocab() != one.get_vocab()]
    if unlike and table["token_ids"].null_count() < table.height:
        raise PromptsError(
            "Prompts are given as token ids, and the models' tokenizers have different ones.",
            expected=f"one vocabulary; {first!r} has {len(one)} tokens",
            given=f"another one in model {unlike[0]!r}",
            next_step="give these prompts as text, or make one study for each tokenizer.",
        )


def with_texts(table: pl.DataFrame, encoded: pl.DataFrame) -> pl.DataFrame:
    """Prompts whose text was given as token ids alone, with the text that these say."""
    if "" not in table["text"]:
        return table
    own = pl.col("rendered").str.slice(
        pl.col("content_start"), pl.col("content_end") - pl.col("content_start")
    )
    said = encoded.select(own)["rendered"]
    return table.with_columns(
        pl.when(pl.col("text") == "").then(said).otherwise(pl.col("text")).alias("text")
    )
