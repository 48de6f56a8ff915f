"""Sentences about behaviour, computed from tables. Pure functions, each with its rule written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.frame import noise, words
from engine.behaviour.report import WHOLE
from engine.behaviour.spec import Figure


def amount(figure: Figure, value: float, *, signed: bool = False) -> str:
    """A value with its unit: "97 %", "0.52 nats per token"; a difference of rates in points."""
    if figure.binary:
        return words.minus(f"{100 * value:+.0f} points") if signed else f"{_hundredths(value)} %"
    text = words.number(value)
    return f"{'+' if signed and value > 0 else ''}{text} {figure.unit}"


def interval(figure: Figure, row: Mapping[str, Any]) -> str:
    """ " (83 to 100)" in the unit of the figure, or nothing where it is not known."""
    if row["low"] is None or row["high"] is None:
        return ""
    low, high = (
        _hundredths(row[end]) if figure.binary else words.number(row[end]) for end in ("low", "high")
    )
    return f" ({low} to {high})"


def _hundredths(share: float) -> str:
    """A share in per cent: whole, or with one decimal below 1."""
    value = round(100 * share, 1)
    return words.minus(f"{value:.0f}" if abs(value) >= 1 or value == 0 else f"{value:.1f}")


def level_title(figure: Figure, levels: pl.DataFrame) -> str:
    """How high a figure is for each who answered, over all prompts: "Refuses: base 3 % (1 to 9)"."""
    rows = levels.filter(pl.col("part") == WHOLE).to_dicts()
    if not rows:
        return f"{figure.title}: no prompt has a value"
    parts = [f"{r['series']} {amount(figure, r['value'])}{interval(figure, r)}" for r in rows]
    return f"{figure.title}: {', '.join(parts)}"


def difference_title(figure: Figure, first: str, found: pl.DataFrame, floor: float = 0.0) -> str:
    """What tells the others from the first, over all prompts, and the part where it is clearest.

    Rule: a difference is said when its interval excludes 0, by more than rounding does (`floor`, of figures
    in nats) and, for rates, the exact p is below 0.05; else they are not told apart. A part is named when its
    difference is said and its interval lies beyond the intervals of all other parts of the same kind (label,
    language, category), away from 0.
    """
    sentences = []
    for series in found["series"].unique(maintain_order=True):
        own = found.filter(pl.col("series") == series)
        whole = own.row(0, named=True)
        if excludes_zero(whole, floor):
            more = "higher" if whole["value"] > 0 else "lower"
            size = amount(figure, abs(whole["value"])).replace(" %", " points")
            text = f"{series} is {more} than {first} by {size}{_signless(figure, whole)}"
        else:
            lost = excludes_zero(whole)
            why = f"the difference is {noise.untold(floor)}; " if lost else ""
            text = f"{series} and {first} are not told apart ({why}{_spread(figure, whole)})"
        clear = clearest(own, floor)
        if clear is not None:
            text += f"; clearest for {clear['part']}: {amount(figure, clear['value'], signed=True)}"
        sentences.append(text)
    return f"{figure.title}: " + "; ".join(sentences) if sentences else f"{figure.title}: nothing to compare"


def _signless(figure: Figure, row: Mapping[str, Any]) -> str:
    low, high = sorted((abs(row["low"]), abs(row["high"])))
    return interval(figure, {"low": low, "high": high})


def _spread(figure: Figure, row: Mapping[str, Any]) -> str:
    said, ends = amount(figure, row["value"], signed=True), interval(figure, row).strip(" ()")
    return f"difference {said}, interval {ends}" if ends else f"difference {said}"


def excludes_zero(row: Mapping[str, Any], floor: float = 0.0) -> bool:
    """Whether a difference's interval lies beyond ±`floor` and its exact p, where there is one, is below
    0.05."""
    if row["p"] is not None and row["p"] >= 0.05:
        return False
    return noise.exceeds(row["low"], row["high"], floor) != 0


def clearest(rows: pl.DataFrame, floor: float = 0.0) -> dict[str, Any] | None:
    """The part whose difference lies beyond those of all other parts of its kind; None without one."""
    parts = [row for row in rows.to_dicts() if row["part"] != WHOLE]
    for row in sorted(parts, key=lambda r: -abs(r["value"])):
        kind = row["part"].split(" ")[0]
        others = [r for r in parts if r["part"].split(" ")[0] == kind and r is not row]
        if others and excludes_zero(row, floor) and all(_beyond(row, other) for other in others):
            return row
    return None


def _beyond(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if other["low"] is None:
        return False
    return bool(row["low"] > other["high"] if row["value"] > 0 else row["high"] < other["low"])


def shared_title(figure: Figure, table: pl.DataFrame, other: str) -> str:
    """The figure on shared tokens beside the whole one, and how much probability those tokens hold."""
    said = []
    for series in table["series"].unique(maintain_order=True):
        own = {row["tokens"]: row for row in table.filter(pl.col("series") == series).to_dicts()}
        whole, shared = amount(figure, own["all"]["value"]), amount(figure, own["shared"]["value"])
        said.append(f"{series} {shared} instead of {whole}, coverage {100 * own['shared']['coverage']:.0f} %")
    return f"{figure.title} on the tokens shared with {other}: " + "; ".join(said)


def asymmetry(series: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy per language on the same pairs, and whether one language is ahead (exact McNemar)."""
    said = []
    for row in rows:
        (one, two), (rate, other) = row["languages"], row["rates"]
        ahead = "no asymmetry is shown" if row["p"] >= 0.05 else f"{one if rate > other else two} is ahead"
        said.append(
            f"{series}, {row['pairs']} pairs: right in {one} {100 * rate:.0f} %, {two} {100 * other:.0f} %; "
            f"{ahead} (exact McNemar p = {words.number(row['p'], 3)})."
        )
    return " ".join(said)
