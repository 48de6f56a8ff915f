"""Several weight changes side by side: seeds of one fine-tune, say, with means and intervals over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from engine.errors import AnalysisError
from engine.subspaces.numbers.scores import Columns, Scores

ACROSS = (
    "joint",
    "gap",
    "r_act",
    "r_combined",
    "r_o_proj",
    "r_down_proj",
    "r_specific",
    "percent_act",
    "percent_combined",
    "cosine",
)
"""Measures of a summary that are compared."""


def across(scores: Sequence[Scores], level: float = 0.95) -> Columns:
    """One row for each candidate that all changes scored, best mean joint score first.

    Columns: candidate, family, axis_kind, source, `n` (changes), and for each measure of `ACROSS` its value
    by the name of the change (`joint[tuned]`), `_mean`, `_sd` (m − 1), and `_low`, `_high`: Student's
    interval for the mean over such changes. It is wide for few (± 9 sd for two), and of this spread alone,
    not of the prompts'. sd and interval are NaN for a single change.

    Raises:
        AnalysisError: no scores, or two of one name.
    """
    targets = [one.target for one in scores]
    if not targets or len(set(targets)) < len(targets):
        raise AnalysisError(
            "These weight changes cannot be put side by side.",
            expected="one or more, each once",
            given=", ".join(targets) or "none",
        )
    tables = [one.summary() for one in scores]
    row_of = [{name: row for row, name in enumerate(table["candidate"])} for table in tables]
    names = [name for name in scores[0].names if all(name in rows for rows in row_of)]
    picked = [np.array([rows[name] for name in names], dtype=np.int64) for rows in row_of]
    columns: Columns = {
        name: tables[0][name][picked[0]] for name in ("candidate", "family", "axis_kind", "source")
    }
    count = len(scores)
    columns["n"] = np.full(len(names), count)
    for measure in ACROSS:
        values = np.array([table[measure][rows] for table, rows in zip(tables, picked, strict=True)])
        columns |= {f"{measure}[{name}]": row for name, row in zip(targets, values, strict=True)}
        columns |= _spread(measure, values.astype(np.float64), level)
    joint = np.asarray(columns["joint_mean"], dtype=np.float64)
    order = np.lexsort((np.arange(len(names)), -np.nan_to_num(joint, nan=-np.inf)))
    return {name: column[order] for name, column in columns.items()}


def _spread(measure: str, values: NDArray[np.float64], level: float) -> Columns:
    """Mean, sd and Student's interval of (m, C) over its first axis."""
    count, mean = len(values), values.mean(axis=0)
    sd = values.std(axis=0, ddof=1) if count > 1 else np.full(len(mean), np.nan)
    half = stats.t.ppf(0.5 + level / 2, max(count - 1, 1)) * sd / np.sqrt(count)
    return {
        f"{measure}_mean": mean,
        f"{measure}_sd": sd,
        f"{measure}_low": mean - half,
        f"{measure}_high": mean + half,
    }
