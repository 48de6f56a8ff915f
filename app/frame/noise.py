"""Rounding noise in sentences and charts: the one rule by which an effect is told from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app.frame import words
from engine.lab import noise

DRAWN = 1e-6
"""Nats: noise below this is not drawn."""


def kl_floor(summary: Mapping[str, Any]) -> float:
    """Nats that a KL, or a difference of KLs, of a stored run must exceed; 0 for runs of before."""
    return noise.kl_floor(summary.get("rounding") or {})


def log_floor(summary: Mapping[str, Any]) -> float:
    """Nats that a difference of log-probabilities must exceed; see `engine.lab.noise.log_floor`."""
    return noise.log_floor(summary.get("rounding") or {})


def exceeds(low: float | None, high: float | None, floor: float = 0.0) -> int:
    """1 where an interval lies above `floor`, −1 where it lies below −floor, 0 where neither is shown."""
    if low is None or high is None:
        return 0
    return int(low > floor) - int(high < -floor)


def lost(low: float | None, high: float | None, floor: float) -> bool:
    """Whether an interval excludes 0, but not by more than rounding noise."""
    return exceeds(low, high) != 0 and exceeds(low, high, floor) == 0


def hidden(row: Mapping[str, Any], floor: float, low: str = "low") -> bool:
    """Whether a KL's interval reaches rounding noise, so that it can't be told from no effect."""
    return floor > 0 and float(row[low]) <= floor


def hidden_rows(low: str = "low") -> pl.Expr:
    """`hidden` for every row of a table with a column `noise`."""
    return (pl.col("noise") > 0) & (pl.col(low) <= pl.col("noise"))


def untold(floor: float) -> str:
    """ "not told from rounding noise (0.0016 nats)": an interval reaches it, the estimate may lie above."""
    return f"not told from rounding noise ({words.nats(floor)} nats)"


def note(summary: Mapping[str, Any]) -> str:
    """What a caption says of it, with a space before; nothing for runs of before."""
    measured = summary.get("rounding") or {}
    if not measured:
        return ""
    told = [f"{words.nats(noise.kl_mean(one))} nats in {name}" for name, one in measured.items()]
    return f" Rounding noise: KL {', '.join(told)}; a finding must exceed {words.nats(kl_floor(summary))}."


def log_note(summary: Mapping[str, Any]) -> str:
    """The same for panels of log-probabilities."""
    if not summary.get("rounding"):
        return ""
    return f"{note(summary)[:-1]}, one of log-probabilities {words.nats(log_floor(summary))}."


def lines(summary: Mapping[str, Any]) -> dict[str, float]:
    """The reference line of a chart of KLs; none where noise is too small to be seen."""
    floor = kl_floor(summary)
    return {"rounding noise": floor} if floor > DRAWN else {}


def band(summary: Mapping[str, Any], x: pl.Series, low: float = 0.0) -> pl.DataFrame | None:
    """The band of a chart of KLs over x, from `low` to the noise: columns x, low, high."""
    floor = kl_floor(summary)
    if not floor > DRAWN or x.is_empty():
        return None
    return pl.DataFrame({"x": [x.min(), x.max()], "low": [low, low], "high": [floor, floor]})
