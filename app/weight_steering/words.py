"""Sentences about steered weights. α of equal KL was chosen on train; all told values are validation's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.frame import noise, words
from engine.stats.means import FEWEST
from engine.weight_steering.spec import FIGURES, Figure

BY_NAME = {figure.name: figure for figure in FIGURES}


def value_of(figure: Figure, value: float) -> str:
    """A figure's value as text."""
    if figure.kind == "rate":
        return f"{100 * value:.0f} %"
    if figure.name == "kl":
        return words.nats(max(value, 0.0))
    return f"{value:.2f}".replace("-", "−")


def with_span(figure: Figure, row: Mapping[str, Any], *, change: bool = False) -> str:
    """ "2.69 (2.56 to 2.84)"."""
    names = ("change", "change_low", "change_high") if change else ("value", "low", "high")
    value, low, high = (value_of(figure, row[name]) for name in names)
    return f"{value} ({low.removesuffix(' %')} to {high.removesuffix(' %')})"


def rows_at(table: pl.DataFrame, figure: str, series: str) -> dict[float, dict[str, Any]]:
    """α -> validation row of one figure of one series, α = 0 being the unsteered model's."""
    found = table.filter(
        (pl.col("figure") == figure)
        & (pl.col("split") == "validation")
        & ((pl.col("series") == series) | (pl.col("series") == ""))
    )
    return {row["alpha"]: row for row in found.sort("alpha").iter_rows(named=True)}


def floor_of(figure: Figure, summary: Mapping[str, Any]) -> float:
    """What rounding does to a figure: nats of KL and of the mean loss behind perplexity (a loss of
    expectation rises by the KL), more of log-probabilities, nothing known of rates."""
    if figure.kind == "rate":
        return 0.0
    if figure.name == "kl" or figure.kind == "perplexity":
        return noise.kl_floor(summary)
    return noise.log_floor(summary)


def few(figure: Figure, row: Mapping[str, Any]) -> bool:
    """Whether a mean is of fewer prompts (or pairs) than one is judged on; an older run doesn't say."""
    return figure.kind != "rate" and int(row.get("units") or FEWEST) < FEWEST


def moved(figure: Figure, row: Mapping[str, Any], floor: float = 0.0) -> int:
    """+1, −1 or 0: whether the paired change from α = 0 has an interval beyond no change, by `floor` or
    more; 0 where there are too few to judge."""
    if few(figure, row):
        return 0
    low, high = row["change_low"], row["change_high"]
    if figure.kind == "perplexity":
        low, high = math.log(low), math.log(high)
    return noise.exceeds(low, high, floor)


def curve_title(
    table: pl.DataFrame,
    figure: Figure,
    series: str,
    alpha: float,
    summary: Mapping[str, Any] | None = None,
) -> str:
    """What a difference does to a figure at the measured α next to `alpha`; whether −α does the opposite.

    Rule: it rises or falls when the interval of the paired change from α = 0 excludes none, by more than
    rounding does (of the run's summary), over at least 12 units; the opposite is told when the change at −α
    has the other sign by the same rule. At α = 0 the value itself is told.
    """
    floor = floor_of(figure, summary or {})
    rows = rows_at(table, figure.name, series)
    at = min(rows, key=lambda one: (abs(one - alpha), one))
    here, zero = rows[at], rows[0.0]
    if at == 0.0:
        return f"Unsteered, {figure.said} is {with_span(figure, here)}"
    here_text = f"α = {at:g}".replace("-", "−")
    if figure.name == "kl" and noise.hidden(here, floor):
        return f"{series} at {here_text}: KL is {noise.untold(floor)}"
    if figure.name == "kl":
        return f"{series} at {here_text} moves the next token of the prompts that should stay by " + (
            f"{with_span(figure, here)} nats"
        )
    sign = moved(figure, here, floor)
    if sign == 0:
        both = f"{with_span(figure, here)} against {value_of(figure, zero['value'])} at α = 0"
        judged = f"; {here['units']} units are too few to judge" if few(figure, here) else ""
        return f"{series} at {here_text} is not shown to change {figure.said}; {both}{judged}"
    text = (
        f"{series} {'raises' if sign > 0 else 'lowers'} {figure.said} from {value_of(figure, zero['value'])} "
    )
    text += f"to {with_span(figure, here)} at {here_text}"
    back = rows.get(-at)
    if back is not None and moved(figure, back, floor) == -sign:
        word = "lowers" if sign > 0 else "raises"
        opposite = f"α = {-at:g}".replace("-", "−")
        return f"{text}; {opposite} {word} it to {value_of(figure, back['value'])}"
    return text


def equal_title(
    summary: Mapping[str, Any], table: pl.DataFrame, figure: Figure, first: str, others: Sequence[str]
) -> str:
    """All differences at one KL.

    Rule: one is told apart from the first when the interval of their paired difference excludes 0, by more
    than rounding does.
    """
    floor = floor_of(figure, summary)
    level, at = summary["equal"]["level"], summary["equal"]["alpha"]
    if level is None:
        return "One of the differences leaves the next token as it is on train: there is no KL to compare at"
    cost = f"At equal KL ({words.nats(level)} nats on train)"
    if at.get(first) is None:
        return f"{cost}: {first} does not reach it"
    own = rows_at(table, figure.name, first)[at[first]]
    text = f"{cost}, {first} brings {figure.said} to {with_span(figure, own)}"
    apart = {row["series"]: row for row in summary["equal"]["apart"] if row["figure"] == figure.name}
    told = []
    for name in others:
        row = apart.get(name)
        if at.get(name) is None:
            told.append(f"{name} doesn't reach it at any α that was run")
        elif row is not None:
            sign = 0 if few(figure, row) else noise.exceeds(row["low"], row["high"], floor)
            word = {1: "more", -1: "less", 0: "not told apart"}[sign]
            told.append(f"{name} {word}")
    return f"{text}; {', '.join(told)}" if told else text
