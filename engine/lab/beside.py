"""Results of several runs of one kind side by side, on the prompts that all of them have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from engine.errors import AnalysisError
from engine.lab.units import resampling_units, unit_name
from engine.stats.means import FEWEST, bootstrap_means

__all__ = ["KEYS", "beside", "shared_figures"]

KEYS = ("id", "pair_id", "category", "split")
"""Columns of a table with one row per prompt that are no figures."""
SCHEMA = {
    "figure": pl.String,
    "run": pl.Int64,
    "n": pl.Int64,
    "units": pl.Int64,
    "unit": pl.String,
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64),
}


def shared_figures(each: Sequence[pl.DataFrame]) -> list[str]:
    """Numbers per prompt that all tables have, in the order of the first."""
    return [c for c in each[0].columns if c not in KEYS and all(c in other.columns for other in each[1:])]


def beside(each: Sequence[pl.DataFrame], *, level: float = 0.95, seed: int = 0) -> pl.DataFrame:
    """Means of every shared figure in every run, and their differences from the first run, with intervals.

    Prompts are those that every run has a finite number of; validation prompts where there are any among
    them, since runs choose amplitudes and heads on the others. What is drawn (`unit`) is what runs draw
    themselves: pairs, or categories (`engine.lab.units`). Intervals are studentised (`engine.stats.means`);
    those of a figure's differences hold together for all other runs. Fewer than 12 units have none.

    Args:
        each: a table for each run, one row per prompt: `id`, what there is of the other `KEYS`, figures.

    Returns:
        a row per figure and run, columns as in `SCHEMA`; `run` counts from 0, whose differences are null.
        A figure that no two prompts share is left out.

    Raises:
        AnalysisError: fewer than two runs, an id twice in one, or nothing shared.
    """
    if len(each) < 2:
        raise AnalysisError("One run has nothing beside it.", expected="two runs or more", given=len(each))
    for table in each:
        if table["id"].is_duplicated().any():
            raise AnalysisError("A run has several rows for a prompt.", expected="one row per prompt")
    rows = [row for figure in shared_figures(each) for row in _figure(each, figure, level, seed)]
    if not rows:
        raise AnalysisError(
            "These runs share no numbers of the same prompts.",
            expected="runs whose prompts and figures overlap",
            given=f"{len(each)} runs",
            next_step="compare runs over the same split and filter.",
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def _figure(each: Sequence[pl.DataFrame], figure: str, level: float, seed: int) -> list[dict[str, object]]:
    joined = each[0].select(*(key for key in KEYS if key in each[0].columns), _finite(figure, 0))
    for number, other in enumerate(each[1:], start=1):
        joined = joined.join(other.select("id", _finite(figure, number)), on="id", maintain_order="left")
    joined = joined.drop_nulls([str(number) for number in range(len(each))])
    if "split" in joined.columns and (held := joined.filter(pl.col("split") == "validation")).height:
        joined = held
    if joined.height < 2:
        return []
    values = joined.select(str(number) for number in range(len(each))).to_numpy().T
    groups = resampling_units(joined)
    units = len(np.unique(groups))
    means = bootstrap_means(values, groups=groups, level=level, seed=seed)
    moved = bootstrap_means(values[1:] - values[0], groups=groups, level=level, seed=seed, together=True)
    shared = {"figure": figure, "n": joined.height, "units": units, "unit": unit_name(joined)}
    rows: list[dict[str, object]] = []
    for number in range(len(each)):
        own = means.at((number,))
        row = {**shared, "run": number, "value": own.estimate, "low": own.low, "high": own.high}
        if number:
            gap = moved.at((number - 1,))
            row |= {"difference": gap.estimate, "difference_low": gap.low, "difference_high": gap.high}
        few = [name for name in row if name.endswith(("low", "high"))] if units < FEWEST else []
        rows.append(row | dict.fromkeys(few))
    return rows


def _finite(figure: str, number: int) -> pl.Expr:
    value = pl.col(figure).cast(pl.Float64)
    return pl.when(value.is_finite()).then(value).alias(str(number))
