"""What the prompts page asks of an open store: vocabulary, lengths and overlaps of its prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import streamlit as st

from app.frame import prompts as queries
from app.frame.opened import Key, Opened
from app.frame.selection import Selection
from app.prompts.fields import PromptFields
from engine.prompts import overlap as fairness
from engine.stats.means import bootstrap_ratio
from engine.stats.uncertainty import Interval, wilson

LEVEL, SEED = 0.95, 0
THRESHOLDS = tuple(step / 100 for step in range(101))
NEAR = 0.8
"""Overlap of character trigrams from which two texts are called near-identical."""


def has_tokens(opened: Opened) -> bool:
    """Whether the store keeps the tokens of its prompts."""
    names = set(opened.store.table_names())
    return all(f"tokens-{model}" in names for model in opened.facts.models)


def has_vocabulary(opened: Opened) -> bool:
    """Whether the store keeps the strings of its tokens."""
    return has_tokens(opened) and "shared-vocabulary" in opened.store.table_names()


def _tables(opened: Opened, models: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    store = opened.store
    known = {model: store.table(f"vocabulary-{model}") for model in models}
    return {model: store.tokens(model) for model in models}, known


@st.cache_data(show_spinner="Comparing vocabularies…", max_entries=16)
def ratios(key: Key, _opened: Opened, a: str, b: str) -> pl.DataFrame:
    """`engine.prompts.overlap.shared_ratios` of a pair, one row per prompt of the store."""
    return fairness.shared_ratios(*_tables(_opened, (a, b)), a, b)


@st.cache_data(show_spinner="Looking for tokens of one vocabulary only…", max_entries=16)
def unshared(key: Key, _opened: Opened, a: str, b: str, which: queries.Filter) -> pl.DataFrame:
    """`engine.prompts.overlap.unshared_tokens` of a pair over the filtered prompts."""
    tokens, known = _tables(_opened, (a, b))
    keep = queries.rows(_opened, which)
    return fairness.unshared_tokens({model: frame[keep] for model, frame in tokens.items()}, known, a, b)


@st.cache_data(show_spinner="Comparing the texts of both splits…", max_entries=4)
def overlaps(key: Key, _opened: Opened) -> pl.DataFrame:
    """`engine.prompts.overlap.split_overlaps` of all prompts."""
    return fairness.split_overlaps(_opened.store.prompts, seed=SEED)


def lengths(opened: Opened, models: tuple[str, ...], which: queries.Filter) -> pl.DataFrame:
    """Tokens of every filtered prompt as it was run: row, series (model), value."""
    keep = queries.rows(opened, which)
    parts = [
        opened.store.tokens(model)[keep].select(
            row=pl.Series(keep, dtype=pl.Int64),
            series=pl.lit(model),
            value=pl.col("token_ids").list.len().cast(pl.Float64),
        )
        for model in dict.fromkeys(models)
    ]
    return pl.concat(parts)


def vocabulary(opened: Opened, a: str, b: str) -> dict[str, int]:
    """Sizes of both vocabularies, strings in both, and how many of those have the same id."""
    row = opened.store.table("shared-vocabulary").filter(a=a, b=b).row(0, named=True)
    return {name: int(row[name]) for name in ("n_a", "n_b", "shared", "same_id")}


def share(flags: pl.Series, groups: pl.Series) -> Interval | None:
    """Share of the groups with a flagged prompt, with its Wilson interval; None without any group.

    Groups are what is independent here, and Wilson's interval says something at 0 too, where resampling
    could not.
    """
    found = pl.DataFrame({"flag": flags, "group": groups}).group_by("group").agg(pl.col("flag").any())
    return wilson(int(found["flag"].sum()), found.height, LEVEL) if found.height else None


def length_ratio(opened: Opened, a: str, b: str, which: queries.Filter) -> Interval | None:
    """Tokens that `b` needs for each token of `a`, paired by prompt; None with fewer than two groups."""
    keep = queries.rows(opened, which)
    units = queries.groups(opened, keep)
    if len(keep if units is None else np.unique(units)) < 2:
        return None
    table = lengths(opened, (a, b), which)
    one, two = (table.filter(series=model)["value"].to_numpy() for model in (a, b))
    return token_ratio(one, two, units)


def token_ratio(one: np.ndarray, two: np.ndarray, units: np.ndarray | None = None) -> Interval:
    """Σ two / Σ one over prompts, with a studentised interval (`engine.stats.means`)."""
    return bootstrap_ratio(two, one, groups=units, level=LEVEL, seed=SEED)


def kept(opened: Opened, selection: Selection) -> pl.DataFrame:
    """The filtered prompts at or above the threshold, with their ratio and lengths where known.

    Returns:
        Columns row, id, language, category, split, then tokens of each model of the pair, ratio, and text.
    """
    own = PromptFields.of(selection)
    keep = queries.rows(opened, queries.chosen_filter(selection))
    shown = [c for c in ("id", "language", "category", "split") if c in opened.store.prompts.columns]
    table = opened.store.prompts.select(shown).with_row_index("row")[keep]
    if has_tokens(opened):
        for model in dict.fromkeys((selection.a, selection.b)):
            count = opened.store.tokens(model)["token_ids"].list.len()
            table = table.with_columns(count.gather(keep).alias(f"tokens {model}"))
    if has_vocabulary(opened) and selection.a != selection.b:
        ratio = ratios(opened.key, opened, selection.a, selection.b)["ratio"].gather(keep)
        table = table.with_columns(ratio.alias("ratio"))
        if own.threshold > 0:
            table = table.filter((pl.col("ratio") >= own.threshold) & pl.col("ratio").is_not_nan())
    return table.with_columns(opened.store.prompts["text"].gather(table["row"]))
