"""Sentences about rank sweeps: what is told was chosen on train and is read off validation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import polars as pl

from app.frame import noise, words

QUIET = "on validation prompts the patch that it is relative to changes nothing beyond rounding"
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


def drop_floor(table: pl.DataFrame, summary: Mapping[str, Any], alpha: float) -> float:
    """Rounding noise in percent of the KL that drop% is relative to, at one α on validation."""
    floor = noise.kl_floor(summary)
    return 100 * floor / cell(table, "raw", 0, alpha)["kl"] if floor else 0.0


def lost(table: pl.DataFrame, summary: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a cell's drop excludes 0, but not by more than rounding noise."""
    return noise.lost(row["low"], row["high"], drop_floor(table, summary, row["alpha"]))


def undefined(reason: str) -> str:
    """A title for a ratio without a meaning."""
    return f"There is no share to tell: {reason}"


def map_title(table: pl.DataFrame, summary: Mapping[str, Any]) -> str:
    """The best cell on train, its validation value, and how many cells are level with it.

    Rule: a cell is level when its validation interval overlaps that of the cell chosen on train. A drop that
    is no larger than rounding noise is called that.
    """
    found = summary["truncated"]
    if found["reason"]:
        return undefined(found["reason"])
    best = cell(table, "truncated", **found["best"])
    if best["value"] is None:
        return undefined(QUIET)
    if lost(table, summary, best):
        text = (
            f"Rank {best['k']} at α = {best['alpha']:g}, the best on train, differs from {against(summary)}"
        )
        return f"{text} by what is {noise.untold(noise.kl_floor(summary))}"
    cells = table.filter((pl.col("kind") == "truncated") & (pl.col("split") == "validation"))
    level = cells.filter((pl.col("low") <= best["high"]) & (pl.col("high") >= best["low"])).height - 1
    text = f"Rank {best['k']} at α = {best['alpha']:g}, the best on train, "
    if best["low"] <= 0 <= best["high"]:
        text += f"is not told apart from {against(summary)}: drop {percent(best)}"
    else:
        text += f"disturbs {percent(best)} less than {against(summary)}"
    return text + (f"; {level} of the other {cells.height - 1} cells are level with it" if level else "")


def path_title(table: pl.DataFrame, summary: Mapping[str, Any]) -> str:
    """The smallest rank within one standard error of the best on train, both with validation values.

    Rule: nothing is said to be enough for a drop that is no larger than rounding noise, or not shown to be
    above 0.
    """
    found = summary["truncated"]
    if found["reason"]:
        return undefined(found["reason"])
    best = cell(table, "truncated", **found["best"])
    if best["value"] is None:
        return undefined(QUIET)
    small = cell(table, "truncated", **found["smallest"])
    if lost(table, summary, best):
        return f"The best drop on train, {percent(best)}, is {noise.untold(noise.kl_floor(summary))}"
    full = summary["full_rank"]
    if best["low"] <= 0:
        how = "No rank is told apart from" if best["high"] >= 0 else "No rank lowers KL below"
        return f"{how} {against(summary)}: the best on train, {best['k']}, {percent(best)}"
    if small["k"] == best["k"] or small["low"] <= 0:
        text = f"No smaller rank is shown to come up to rank {best['k']} of {full}"
        return f"{text}: drop {percent(best)} at α = {best['alpha']:g}"
    text = f"Rank {small['k']} of {full} is enough: drop {percent(small)} at α = {small['alpha']:g}"
    return text + f"; within one standard error of the best on train, rank {best['k']} with {percent(best)}"


def projector_title(table: pl.DataFrame, summary: Mapping[str, Any], alpha: float) -> str:
    """How many directions do what the whole swap does, beside random ones, at one α."""
    found = next(at for at in summary["projector"] if abs(at["alpha"] - alpha) < 1e-9)
    if found["reason"]:
        return undefined(found["reason"])
    size, small, most = summary["basis_size"], found["smallest"], found["most"]
    told = small if small is not None and small < size else most
    if told is not None and cell(table, "projector", told, alpha)["value"] is None:
        return undefined(QUIET)  # there is an effect on train alone

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
