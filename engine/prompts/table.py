"""Prompts: reading a table, splitting it by group, and turning it into tokens once and for all.

The rendered text, the token ids and every token's character span are kept together, so nothing is ever
tokenised again from decoded text. The user's own text is known by its characters in the rendered text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from engine.errors import PromptsError
from engine.prompts.files import read_rows
from engine.prompts.overlap import shared_ratios
from engine.prompts.positions import Positions, parse_position, positions
from engine.prompts.roles import DTYPES
from engine.prompts.spec import GENERATED, GeneratedAnswers, PromptFilter, PromptsSpec
from engine.texts.patterns import search

__all__ = [
    "COLUMNS",
    "Positions",
    "assign_splits",
    "matches",
    "parse_position",
    "positions",
    "read_prompts",
    "shared_rows",
]

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
COLUMNS: dict[str, Any] = {
    "id": pl.String,
    "text": pl.String,
    "messages": MESSAGES,
    "pair_id": pl.String,
    "language": pl.String,
    "category": pl.String,
    "split": pl.String,
    "answer": pl.String,
    "choices": pl.List(pl.String),
    "label": pl.String,
}
GENERATED_COLUMNS: dict[str, Any] = {
    GENERATED: pl.String,
    "generated_by": pl.String,
    "generated_ended": pl.Boolean,
}
"""What is kept of an answer that a model gave: its text, the model, and whether it ended it itself."""
SPLITS = ("train", "validation")


def read_prompts(spec: PromptsSpec) -> pl.DataFrame:
    """Reads, validates, filters and limits the prompts of a study.

    With `min_shared_ratio`, or where prompts may be dropped later, the limit waits for `shared_rows`.

    Returns:
        One row per prompt in file order, the columns of `COLUMNS` (missing ones null) and after them any
        further columns of the files. `text` is always the user's own text: with `messages`, the last
        user message.

    Raises:
        PromptsError: unreadable file, row without id, duplicate id, empty text, bad messages, unknown
            split, a group (`pair_id`, else `id`) in two splits, or filters that keep nothing or name what
            no prompt has. The message names file and row.
    """
    rows = read_rows(spec)
    if not rows:
        raise PromptsError(
            "The prompt files hold no prompts.",
            expected="at least one",
            given=[source.title for source in spec.files],
            next_step="put prompts into the files, or name others in prompts.files.",
        )
    seen: dict[str, str] = {}
    for row, where in rows:
        if row["id"] in seen:
            raise PromptsError(
                f"The prompt id {row['id']!r} is used twice.",
                expected="a different id for every prompt",
                given=f"{seen[row['id']]} and {where}",
                next_step="rename one; the two languages of a pair share pair_id, not id.",
            )
        seen[row["id"]] = where
    known = COLUMNS | {role: dtype for role, dtype in DTYPES.items() if role in spec.roles}
    extra = list(dict.fromkeys(key for row, _ in rows for key in row if key not in known))
    schema = known | dict.fromkeys(extra, pl.String)
    table = pl.DataFrame([{key: row.get(key) for key in schema} for row, _ in rows], schema=schema)
    table = _filtered(table, spec)
    _check_splits(table)
    _check_answers(table, spec)
    return table if _limited_later(spec) else _limited(table, spec.limit)


def _limited_later(spec: PromptsSpec) -> bool:
    """Whether the limit counts prompts that are known to be used only when they are tokens."""
    return spec.min_shared_ratio is not None or "drop" in (spec.too_long, spec.unusable)


def matches(table: pl.DataFrame, wanted: PromptFilter, *, any_of: bool = False) -> pl.Series:
    """Which prompts have all (or, with `any_of`, any) of what a filter names, Boolean (n,)."""
    named = [
        (pl.col(column).is_in(values)).fill_null(False)
        for column, values in (("category", wanted.category), ("language", wanted.language))
        if values
    ]
    if wanted.text is not None:
        found = [span is not None for span in search(wanted.text, table["text"].to_list())]
        named.append(pl.lit(pl.Series(found, dtype=pl.Boolean)))
    return table.select(keep=pl.any_horizontal(named) if any_of else pl.all_horizontal(named))["keep"]


def _filtered(table: pl.DataFrame, spec: PromptsSpec) -> pl.DataFrame:
    """The prompts that `include` and `exclude` leave; PromptsError as in `read_prompts`."""
    kept = table
    for key, wanted in (("include", spec.include), ("exclude", spec.exclude)):
        if wanted is None:
            continue
        for column, values in (("category", wanted.category), ("language", wanted.language)):
            unknown = sorted(set(values) - set(table[column].drop_nulls()))
            if unknown:
                raise PromptsError(
                    f"prompts.{key} names a {column} that no prompt has.",
                    expected=", ".join(table[column].drop_nulls().unique().sort())
                    or f"prompts with a {column}",
                    given=repr(unknown[0]),
                    next_step=f"correct prompts.{key}.{column}.",
                )
        hit = matches(kept, wanted, any_of=key == "exclude")
        kept = kept.filter(hit if key == "include" else ~hit)
    return _nonempty(kept, table, "prompts.include and prompts.exclude")


def _nonempty(kept: pl.DataFrame, before: pl.DataFrame, who: str) -> pl.DataFrame:
    if not kept.height:
        raise PromptsError(
            f"{who} keep no prompt.",
            expected=f"at least one of {before.height}",
            given="0",
            next_step="widen them.",
        )
    return kept


def shared_rows(
    table: pl.DataFrame,
    encoded: Mapping[str, pl.DataFrame],
    vocabularies: Mapping[str, pl.DataFrame],
    spec: PromptsSpec,
) -> list[int]:
    """Row numbers of the prompts that `min_shared_ratio` keeps, then limited as in `read_prompts`.

    Args:
        table: from `read_prompts`.
        encoded, vocabularies: per model, from `encode` and `engine.prompts.overlap.vocabularies`.

    Returns:
        Ascending rows whose shared ratio is at least `min_shared_ratio` for every pair of models; all
        rows without one; of these what the limit keeps, where it waited.

    Raises:
        PromptsError: nothing is left.
    """
    if not _limited_later(spec):
        return list(range(table.height))
    keep = pl.Series([True] * table.height)
    for a, b in itertools.combinations(encoded, 2) if spec.min_shared_ratio is not None else ():
        ratio = shared_ratios(encoded, vocabularies, a, b)["ratio"]
        keep = keep & (ratio >= spec.min_shared_ratio) & ratio.is_not_nan()
    kept = _nonempty(table.with_row_index("row").filter(keep), table, "prompts.min_shared_ratio")
    return _limited(kept, spec.limit)["row"].to_list()


def _check_answers(table: pl.DataFrame, spec: PromptsSpec) -> None:
    """PromptsError for prompts without the answer that the study puts behind every one, or with two."""
    if spec.answers is None:
        return
    if isinstance(spec.answers, GeneratedAnswers):
        _check_free(table)
    else:
        _check_given(table, spec.answers)
    said = table.filter(pl.col("messages").list.last().struct.field("role") == "assistant")["id"]
    if len(said):
        raise PromptsError(
            f"Prompt {said[0]!r} ends with the assistant, and prompts.answers gives its answer too.",
            expected="one of them",
            given=f"{len(said)} such prompts",
            next_step="drop prompts.answers, or the last message.",
        )


def _check_given(table: pl.DataFrame, column: str) -> None:
    there = column in table.columns
    without = (
        table.filter(pl.col(column).fill_null("").str.strip_chars() == "")["id"] if there else table["id"]
    )
    if len(without):
        raise PromptsError(
            f"Prompts have no answer in the column {column!r}, which prompts.answers names.",
            expected="text in every prompt" if there else "one of " + ", ".join(table.columns),
            given=f"{len(without)} of {table.height} without, e.g. {without[0]!r}",
            next_step="fill the column, or leave these prompts out with prompts.exclude.",
        )


def _check_free(table: pl.DataFrame) -> None:
    taken = [name for name in GENERATED_COLUMNS if name in table.columns]
    if taken:
        raise PromptsError(
            f"The prompts have a column {taken[0]!r}, where the answers that are generated are kept.",
            expected="no column of this name",
            given="one in the prompt files",
            next_step=f'rename it, or use it: answers = "{taken[0]}".',
        )


def group_column() -> pl.Expr:
    """The group a prompt is split and resampled by: `pair_id`, else `id`."""
    return pl.coalesce("pair_id", "id")


def _check_splits(table: pl.DataFrame) -> None:
    wrong = table.filter(pl.col("split").is_not_null() & ~pl.col("split").is_in(SPLITS))
    if wrong.height:
        raise PromptsError(
            f"Prompt {wrong['id'][0]!r} has an unknown split.",
            expected="train, validation or nothing",
            given=repr(wrong["split"][0]),
            next_step="correct the split column, or drop it and let Patchbay split by group.",
        )
    counts = table.group_by(group_column().alias("group")).agg(pl.col("split").drop_nulls().unique())
    both = counts.filter(pl.col("split").list.len() > 1)["group"].sort()
    if len(both):
        raise PromptsError(
            "The splits overlap: prompts of one group are in both.",
            expected="all prompts with one pair_id in the same split",
            given=f"{len(both)} groups in both, e.g. {both[0]!r}",
            next_step="correct the split column, or drop it and let Patchbay split by group.",
        )


def _limited(table: pl.DataFrame, limit: int | None) -> pl.DataFrame:
    """Whole groups, taken in turn from the categories in file order, while they fit into `limit`."""
    if limit is None:
        return table
    groups = table.group_by(group_column().alias("group"), maintain_order=True).agg(
        pl.len().alias("n"), pl.col("category").first().fill_null("")
    )
    waiting = groups.partition_by("category", maintain_order=True)
    turns = pl.concat([part.with_row_index("turn") for part in waiting]).sort("turn", maintain_order=True)
    kept, total = [], 0
    for name, size in zip(turns["group"], turns["n"], strict=True):
        if total + size <= limit:
            kept.append(name)
            total += size
    if not kept:
        raise PromptsError(
            "The limit is smaller than every group of prompts.",
            expected=f"at least {min(groups['n'].to_list())}",
            given=limit,
            next_step="raise prompts.limit (or --limit).",
        )
    return table.filter(group_column().is_in(kept))


def assign_splits(table: pl.DataFrame, validation: float, seed: int) -> pl.DataFrame:
    """Fills the `split` column with "train" and "validation".

    Splits are made by group (`pair_id`, else `id`), stratified by category: every category gives the
    same share of its groups, rounded by largest remainders so that the total is right. Splits that are
    already given stay, and count for the whole group. Independent of the order of rows.

    Raises:
        PromptsError: given splits that overlap.
    """
    _check_splits(table)
    groups = table.group_by(group_column().alias("group")).agg(
        pl.col("split").drop_nulls().first().alias("given"), pl.col("category").min().fill_null("")
    )
    chosen = dict(zip(groups["group"], groups["given"], strict=True))
    free = groups.filter(pl.col("given").is_null())
    by_category: dict[str, list[str]] = {}
    for name, category in zip(free["group"], free["category"], strict=True):
        by_category.setdefault(category, []).append(name)
    quota = _quota({key: len(names) for key, names in by_category.items()}, validation)
    for category, unsorted in by_category.items():
        names = sorted(unsorted)
        order = _generator(seed, category).permutation(len(names))
        for rank, index in enumerate(order):
            chosen[names[index]] = SPLITS[rank < quota[category]]
    split = table.select(group_column())["pair_id"].replace_strict(chosen, return_dtype=pl.String)
    return table.with_columns(split.alias("split"))


def _quota(sizes: dict[str, int], share: float) -> dict[str, int]:
    """Largest-remainder rounding of share x size per category; ties go to the category first by name."""
    exact = {key: share * size for key, size in sizes.items()}
    out = {key: int(value) for key, value in exact.items()}
    left = round(share * sum(sizes.values())) - sum(out.values())
    for key in sorted(exact, key=lambda key: (out[key] - exact[key], key))[:left]:
        out[key] += 1
    return out


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
