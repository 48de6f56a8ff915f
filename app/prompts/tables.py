"""Vocabulary, lengths and overlaps of a store's prompts.

Tables about two models, `a` and `b`, are of `which` prompts: (split, language, category), each "all" or a
value of that column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from app.frame import prompts as queries
from app.frame.call import kept
from engine.prompts import overlap as fairness
from engine.stats.means import bootstrap_ratio
from engine.stats.uncertainty import Interval, wilson
from store.reader import Store

LEVEL, SEED = 0.95, 0
THRESHOLDS = tuple(step / 100 for step in range(101))
MOST_ROWS = 40
"""Bars of counted prompts at most."""
MOST_LINES = 6
"""Categories that are told apart at most."""
NEAR = 0.8
"""Overlap of character trigrams from which two texts are called near-identical."""


def has_tokens(store: Store) -> bool:
    """Whether the store keeps the tokens of its prompts."""
    names = set(store.table_names())
    return all(f"tokens-{model}" in names for model in store.models)


def has_vocabulary(store: Store) -> bool:
    """Whether the store keeps the strings of its tokens."""
    return has_tokens(store) and "shared-vocabulary" in store.table_names()


def _tables(store: Store, models: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    known = {model: store.table(f"vocabulary-{model}") for model in models}
    return {model: store.tokens(model) for model in models}, known


@kept("Comparing vocabularies…", most=16)
def ratios(store: Store, a: str, b: str) -> pl.DataFrame:
    """`engine.prompts.overlap.shared_ratios` of a pair, one row per prompt of the store."""
    return fairness.shared_ratios(*_tables(store, (a, b)), a, b)


def parted_by(store: Store) -> Sequence[str]:
    """What prompts are counted by: category and language, as far as they have them and it is not too many."""
    prompts = store.prompts
    has = [c for c in ("category", "language") if c in prompts.columns]
    by = [c for c in has if prompts[c].null_count() < len(prompts)]
    return by[:1] if len(by) == 2 and prompts.select(by).unique().height > MOST_ROWS else by


def balance(store: Store) -> pl.DataFrame:
    """Prompts by category, language and split: name, series (split), value."""
    named = [pl.col(c).fill_null("none") for c in parted_by(store)]
    name = pl.concat_str(*(named or [pl.lit("prompts")]), separator=" · ").alias("name")
    by = store.prompts.group_by(name, pl.col("split").alias("series"))
    return by.agg(value=pl.len()).sort("name", "series")


def remaining_shared(store: Store, a: str, b: str, which: queries.Filter) -> pl.DataFrame:
    """Which share of the prompts, and of every category, remains at each least shared-vocabulary ratio, as
    `engine.prompts.overlap.remaining` says it."""
    keep = queries.require(queries.rows(store, which), 1)
    ratio, series = ratios(store, a, b)["ratio"].gather(keep), categories(store, a, b, keep)
    every = fairness.remaining(ratio, pl.Series(["all"] * len(ratio)), THRESHOLDS)
    return every if series is None else pl.concat([every, fairness.remaining(ratio, series, THRESHOLDS)])


def categories(store: Store, a: str, b: str, keep: np.ndarray) -> pl.Series | None:
    """Each prompt's category, those with the highest mean ratio joined to "others".

    None with fewer than two categories or nothing to lose.
    """
    ratio = ratios(store, a, b)["ratio"].gather(keep)
    if "category" not in store.prompts.columns or ratio.min() == 1.0:
        return None
    series = store.prompts["category"].gather(keep).fill_null("none")
    by = pl.DataFrame({"ratio": ratio, "series": series}).group_by("series")
    means = by.agg(pl.col("ratio").mean()).sort("ratio", "series")
    if means.height < 2:
        return None
    if means.height <= MOST_LINES:
        return series
    named = means["series"].head(MOST_LINES - 1).to_list()
    joined = pl.when(pl.col("category").is_in(named)).then("category").otherwise(pl.lit("others"))
    return series.to_frame().select(joined)["category"]


@kept("Looking for tokens of one vocabulary only…", most=16)
def unshared(store: Store, a: str, b: str, which: queries.Filter) -> pl.DataFrame:
    """`engine.prompts.overlap.unshared_tokens` of a pair over the filtered prompts."""
    tokens, known = _tables(store, (a, b))
    keep = queries.rows(store, which)
    return fairness.unshared_tokens({model: frame[keep] for model, frame in tokens.items()}, known, a, b)


@kept("Comparing the texts of both splits…", most=4)
def overlaps(store: Store) -> pl.DataFrame:
    """`engine.prompts.overlap.split_overlaps` of all prompts."""
    return fairness.split_overlaps(store.prompts, seed=SEED)


def leakage(store: Store) -> pl.DataFrame:
    """Which share of prompts has a train prompt of another group that overlaps at least so much, as
    `engine.prompts.overlap.remaining` says it."""
    known = overlaps(store).drop_nulls("overlap")
    return fairness.remaining(known["overlap"], known["series"], THRESHOLDS)


def lengths(store: Store, models: tuple[str, ...], which: queries.Filter) -> pl.DataFrame:
    """Tokens of every filtered prompt as it was run: row, series (model), value."""
    keep = queries.rows(store, which)
    parts = [
        store.tokens(model)[keep].select(
            row=pl.Series(keep, dtype=pl.Int64),
            series=pl.lit(model),
            value=pl.col("token_ids").list.len().cast(pl.Float64),
        )
        for model in dict.fromkeys(models)
    ]
    return pl.concat(parts)


def vocabulary(store: Store, a: str, b: str) -> dict[str, int]:
    """Sizes of both vocabularies, strings in both, and how many of those have the same id."""
    row = store.table("shared-vocabulary").filter(a=a, b=b).row(0, named=True)
    return {name: int(row[name]) for name in ("n_a", "n_b", "shared", "same_id")}


def share(flags: pl.Series, groups: pl.Series) -> Interval | None:
    """Share of the groups with a flagged prompt, with its Wilson interval; None without any group.

    Groups are what is independent here, and Wilson's interval says something at 0 too, where resampling
    could not.
    """
    found = pl.DataFrame({"flag": flags, "group": groups}).group_by("group").agg(pl.col("flag").any())
    return wilson(int(found["flag"].sum()), found.height, LEVEL) if found.height else None


def length_ratio(store: Store, a: str, b: str, which: queries.Filter) -> Interval | None:
    """Tokens that `b` needs for each token of `a`, paired by prompt; None with fewer than two groups."""
    keep = queries.rows(store, which)
    units = queries.groups(store, keep)
    if len(keep if units is None else np.unique(units)) < 2:
        return None
    table = lengths(store, (a, b), which)
    one, two = (table.filter(series=model)["value"].to_numpy() for model in (a, b))
    return token_ratio(one, two, units)


def token_ratio(one: np.ndarray, two: np.ndarray, units: np.ndarray | None = None) -> Interval:
    """Σ two / Σ one over prompts, with a studentised interval (`engine.stats.means`)."""
    return bootstrap_ratio(two, one, groups=units, level=LEVEL, seed=SEED)


def kept_prompts(store: Store, a: str, b: str, which: queries.Filter, threshold: float) -> pl.DataFrame:
    """The filtered prompts at or above a shared-vocabulary ratio, with their ratio and lengths where known.

    Returns:
        Columns row, id, language, category, split, then tokens of each model of the pair, ratio, and text.
    """
    keep, prompts = queries.rows(store, which), store.prompts
    shown = [c for c in ("id", "language", "category", "split") if c in prompts.columns]
    table = prompts.select(shown).with_row_index("row")[keep]
    if has_tokens(store):
        for model in dict.fromkeys((a, b)):
            count = store.tokens(model)["token_ids"].list.len()
            table = table.with_columns(count.gather(keep).alias(f"tokens {model}"))
    if has_vocabulary(store) and a != b:
        ratio = ratios(store, a, b)["ratio"].gather(keep)
        table = table.with_columns(ratio.alias("ratio"))
        if threshold > 0:
            table = table.filter((pl.col("ratio") >= threshold) & pl.col("ratio").is_not_nan())
    return table.with_columns(prompts["text"].gather(table["row"]))
