"""What the intervals of an experiment draw: whole categories, pairs or prompts."""

from __future__ import annotations

import numpy as np
import polars as pl

from engine.lab.experiment import resampling_groups

CLUSTER = "category cluster"
CLUSTERS = 20
"""Categories from which on they stand for others: fewer are few clusters (Cameron, Gelbach & Miller 2008).
What three of a dozen categories have, and have for certain, would not be shown."""


def resampling_units(prompts: pl.DataFrame) -> np.ndarray:
    """What intervals draw: number of each prompt's unit, int64 (n,); `unit_name` says what it is.

    Prompts of one category (a template, a topic) share more than others do; drawn one by one they would tell
    apart what differs between categories only. So whole categories are drawn where there are 20 or more.
    Fewer can't stand for others: pairs or prompts are drawn, and what is found holds for these categories.
    """
    return category_units(prompts) if unit_name(prompts) == CLUSTER else resampling_groups(prompts)


def category_units(prompts: pl.DataFrame) -> np.ndarray:
    """Number of each prompt's category, int64 (n,). A pair is in the category of its first prompt; one
    without a category is a unit of its own."""
    groups = resampling_groups(prompts)
    _, first = np.unique(groups, return_index=True)
    names = prompts["category"].to_list()
    keys = [("category", names[row]) if names[row] is not None else ("group", row) for row in first[groups]]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def unit_name(prompts: pl.DataFrame) -> str:
    """What `resampling_units` draws: "category cluster", "pair" or "prompt"."""
    if "category" in prompts.columns and prompts["category"].drop_nulls().n_unique() >= CLUSTERS:
        return CLUSTER
    return "pair" if np.unique(resampling_groups(prompts)).size < prompts.height else "prompt"
