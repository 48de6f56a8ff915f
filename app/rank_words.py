"""Sentences about rank sweeps: what is told was chosen on train and is read off validation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import polars as pl

from app import words

STEP = 10.0
"""A fall between neighbouring singular values from which on it is told."""


def percent(row: Mapping[str, Any]) -> str:
    """ "98.8 % (95.4 to 99.8)" from a row with value, low, high."""
    if row["value"] is None:
        return "undefined"
    return words.percent(row["value"], row["low"], row["high"])


def cell(table: pl.DataFrame, kind: str, k: int, alpha: float) -> dict[str, Any]:
    """The validation row of one (kind, k, α)."""
    found = table.filter(
        (pl.col("kind") == kind)
        & (pl.col("split") == "validation")
        & (pl.col("k") == k)
        & ((pl.col("alpha") - alpha).abs() < 1e-9)
    )
    return found.row(0, named=True)


def against(summary: Mapping[str, Any]) -> str:
    """The patch that drop% is relative to, in words."""
    if summary["reference"] == "raw":
        return "the moment-matched patch"
    return "the target's mean (the models' widths differ, so there is no moment-matched patch)"


def undefined(reason: str) -> str:
    """A title for a ratio without a meaning."""
    return f"There is no share to tell: {reason}"


def map_title(table: pl.DataFrame, summary: Mapping[str, Any]) -> str:
    """The best cell on train, its validation value, and how many cells are level with it.

    Rule: a cell is level when its validation interval overlaps that of the cell chosen on train.
    """
    found = summary["truncated"]
    if found["reason"]:
        return undefined(found["reason"])
    best = cell(table, "truncated", **found["best"])
    cells = table.filter((pl.col("kind") == "truncated") & (pl.col("split") == "validation"))
    level = cells.filter((pl.col("low") <= best["high"]) & (pl.col("high") >= best["low"])).height - 1
    text = f"Rank {best['k']} at α = {best['alpha']:g}, the best on train, disturbs the next token "
    text += f"{percent(best)} less than {against(summary)}"
    return text + (f"; {level} of the other {cells.height - 1} cells are level with it" if level else "")


def path_title(table: pl.DataFrame, summary: Mapping[str, Any]) -> str:
    """The smallest rank within one standard error of the best on train, both with validation values."""
    found = summary["truncated"]
    if found["reason"]:
        return undefined(found["reason"])
    best = cell(table, "truncated", **found["best"])
    small = cell(table, "truncated", **found["smallest"])
    full = summary["full_rank"]
    if small["k"] == best["k"]:
        text = f"No smaller rank comes up to rank {best['k']} of {full}"
        return f"{text}: drop {percent(best)} at α = {best['alpha']:g}"
    text = f"Rank {small['k']} of {full} is enough: drop {percent(small)} at α = {small['alpha']:g}"
    return text + f", within one standard error of the best on train, rank {best['k']} with {percent(best)}"


def projector_title(table: pl.DataFrame, summary: Mapping[str, Any], alpha: float) -> str:
    """How many directions do what the whole swap does, beside random ones, at one α."""
    found = next(at for at in summary["projector"] if abs(at["alpha"] - alpha) < 1e-9)
    if found["reason"]:
        return undefined(found["reason"])
    size, small, most = summary["basis_size"], found["smallest"], found["most"]

    def beside(k: int) -> str:
        chance = percent(cell(table, "random", k, alpha))
        return f"{percent(cell(table, 'projector', k, alpha))} of the whole swap's KL, random ones {chance}"

    if small is not None and small < size:
        return f"{_directions(small)} of {size} carry the effect: {beside(small)}"
    if most is not None and most < size:
        return f"{_directions(most)} of {size} do most of it, {beside(most)}; all of it takes " + (
            f"{small}" if small is not None else "more than this basis has"
        )
    return f"Fewer than {size} directions don't carry the effect"


def _directions(count: int) -> str:
    return "1 direction" if count == 1 else f"{count} directions"


def spectrum_title(values: pl.DataFrame, counts: Mapping[str, int], what: str, chance: str) -> str:
    """How many directions hold 99 % of the squares, and where the values fall most steeply.

    Rule: the steepest fall between neighbours in the leading half is told when it is tenfold or more.

    Args:
        values: columns index, value. counts: needed, needed_null, total. what, chance: names.
    """
    text = f"{_directions(counts['needed'])} of {counts['total']} hold 99 % of {what}"
    text += f" ({chance}: {counts['needed_null']})"
    sigma = values.sort("index")["value"].to_list()
    falls = [
        (a / b if b > 0 else float("inf"), i + 1)
        for i, (a, b) in enumerate(pairwise(sigma[: len(sigma) // 2 + 1]))
        if a > 0
    ]
    if not falls or max(falls)[0] < STEP:
        return text
    fall, after = max(falls)
    by = (
        "to 0"
        if fall == float("inf")
        else f"{fall:.0f}-fold"
        if fall < 1e4
        else f"{fall:.0e}-fold".replace("e+0", "e")
    )
    return f"{text}; the steepest fall, {by}, is behind direction {after}"
