"""Sentences of the transport page, computed from its numbers. Pure functions, each with its rule."""

from __future__ import annotations

import math

import polars as pl

from app.frame.words import number, span
from engine.transport import EXACT, TransportScores, decimals

TIED = 1e-9
"""Two R² on train closer than this are the same: with few prompts a map fits them exactly everywhere."""


def map_title(scores: TransportScores, source: str, target: str, place: str, constant: str = "") -> str:
    """What the scores of one map mean together.

    Rule: the words of `describe`, unless one side doesn't vary, which is said instead.

    Args:
        place: "resid_post of block 3".
        constant: model whose train activations are all the same, or "".
    """
    start = f"{source} → {target}, {place}: "
    if constant:
        return start + (
            f"the activations of {constant} are the same for every train prompt (they all share one token "
            "here), so there is nothing to map"
        )
    text = scores.words.rstrip(".")
    known = not math.isnan(scores.r2_low) and "within" not in text
    if known and text.startswith(("The map predicts", "The map carries")):
        digits = decimals(scores.r2_validation)
        told = f"R² {scores.r2_validation:.{digits}f}"
        text = text.replace(told, told + span(scores.r2_low, scores.r2_high, digits), 1)
    return start + text[0].lower() + text[1:]


def penalty_title(table: pl.DataFrame, chosen: float, how: str, value: float, used: float) -> str:
    """Where on the λ path the map stands, and how that was chosen.

    Rule: λ chosen on train; told with its validation R²; one at an end of the path is said to be there.

    Args:
        table: columns x, series, value.
        chosen: λ that `how` chose on the train prompts. used: λ in use; value: its validation R².
    """
    ends = table["x"].min(), table["x"].max()
    if math.isclose(used, chosen):
        text = f"λ = {used:.4g}, chosen by {how} on train: R² {number(value)} on validation"
    else:
        text = f"λ = {used:.4g}, set by hand: R² {number(value)} on validation "
        text += f"({how} on train chose {chosen:.4g})"
    if chosen in ends:
        end = "smallest" if chosen == ends[0] else "largest"
        text += f"; {how} chose the {end} λ on offer"
    return text


def rank_title(table: pl.DataFrame, rank: int, full: int, tied: bool) -> str:
    """How much of the full map's R² a rank keeps.

    Rule: validation R² at the selected k against the full rank's. A tied spectrum has no meaningful path.

    Args:
        table: columns x, series ("validation" among them), value.
        rank: k in use; full: the full rank.
        tied: without shrinkage and with too few prompts all singular values are equal.
    """
    if tied:
        return (
            f"A rank path means nothing here: without shrinkage and with so few prompts all {full} singular "
            "values are equal, and only the full-rank map is unique; raise γ"
        )
    path = table.filter(pl.col("series") == "validation").sort("x")
    own = _at(path, rank)
    if rank >= full and own > 1 - EXACT:
        return f"Full rank {full}: R² 1 on validation (within {EXACT:.0e})"
    if rank >= full:
        return f"Full rank {full}: R² {number(own, decimals(own))} on validation"
    whole = _at(path, full)
    digits = max(decimals(own), decimals(whole))
    return (
        f"Rank {rank} of {full}: R² {number(own, digits)} on validation, {number(whole, digits)} at full rank"
    )


def _at(path: pl.DataFrame, x: float) -> float:
    nearest = path.filter((pl.col("x") - x).abs() == (pl.col("x") - x).abs().min())["value"]
    return float(nearest[0]) if len(nearest) and nearest[0] is not None else math.nan


def spectrum_title(values: list[float], what: str) -> str:
    """How many singular values carry half and nine tenths of their sum.

    Rule: fewest leading values whose sum reaches the share.
    """
    total = sum(values)
    if not values or total <= 0:
        return f"{what}: none, the activations don't vary"
    counts, reached = [], 0.0
    shares = [0.5, 0.9]
    for index, value in enumerate(values):
        reached += value
        while shares and reached >= shares[0] * total * (1 - 1e-12):
            counts.append(index + 1)
            shares.pop(0)
    if math.isclose(values[0], values[-1], rel_tol=1e-9) and len(values) > 1:
        return f"{what}: all {len(values)} are equal"
    return f"{what}: {counts[0]} of {len(values)} make up half of their sum, {counts[1]} nine tenths"


def table_title(table: pl.DataFrame, source: str, target: str) -> str:
    """At how many places a map carries over, and what the first on train does on validation.

    Rule: it carries over where the interval of validation R² lies above 0 and above the largest R² of refits
    on wrong pairs. Of those places the one with the largest R² on train is named with its validation R²; it
    is said to be above every other only when its interval lies above all others' by more than the share of
    the variance that is rounding at either place (column `noise`, where there is one). Equal ones on train
    are all counted, and none of them is named.
    """
    known = table.drop_nulls(["r2_train", "r2_validation", "r2_low", "r2_high"])
    if not known.height:
        return f"{source} → {target}: no place has a score"
    wins = known.filter(
        (pl.col("r2_low") > 0) & (pl.col("r2_low") > pl.col("r2_shuffled_max").fill_null(0.0))
    )
    start = f"{source} → {target}: new prompts are predicted at {wins.height} of {known.height} places"
    if not wins.height:
        return start
    best = wins.sort("r2_train", descending=True).row(0, named=True)
    tied = wins.filter(pl.col("r2_train") >= best["r2_train"] - TIED).height
    if tied > 1:
        return f"{start}; {tied} of them are fitted alike on train, R² {number(best['r2_train'])} there"
    told = f"{start}; the first on train, {best['site']} of block {best['layer']}, has "
    told += f"R² {number(best['r2_validation'])}{span(best['r2_low'], best['r2_high'])}"
    noise = pl.max_horizontal("noise", pl.lit(best["noise"])) if "noise" in wins.columns else pl.lit(0.0)
    above = wins.filter(pl.col("r2_low") > best["r2_high"] + noise).height
    level = wins.filter(pl.col("r2_high") >= best["r2_low"] - noise).height - 1 - above
    if not level and not above:
        return told + (", above every other" if wins.height > 1 else "")
    parts = [
        f"{count} {word}" for count, word in ((level, "level within the intervals"), (above, "above it"))
    ]
    return f"{told}; of the others, {' and '.join(p for p in parts if not p.startswith('0 '))}"


def constant_note(source: int, target: int) -> str:
    """How many dimensions don't vary on train, so that ridge drops them or predicts their mean, if any."""
    if not source and not target:
        return ""
    return f"{source} of the source's dimensions and {target} of the target's do not vary on train."
