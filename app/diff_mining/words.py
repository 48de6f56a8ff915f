"""Sentences of diff mining. A token is named only where it exceeds chance and rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.difference_lens.words import counted
from app.frame.panel import HEADING
from app.tokenwise.words import token
from engine.difference_lens.numbers import FEWEST

__all__ = ["times", "tokens_title", "topics_title"]

MOST = math.log(1e6)
"""Log ratio from which on a factor is not told."""
STABLE = 0.8
"""Mean cosine with itself in resamples from which on a topic is named."""


def times(ratio: float) -> str:
    """A log ratio as a factor: "4.1 ×", "0.35 ×", "1,200 ×"."""
    if ratio > MOST:
        return f"more than {math.exp(MOST):,.0f} ×"
    factor = math.exp(ratio)
    return f"{factor:,.0f} ×" if factor >= 99.5 else f"{factor:.2g} ×"


def tokens_title(models: tuple[str, str], tokens: pl.DataFrame, summary: Mapping[str, Any]) -> str:
    """Which tokens a model says more often, and which less.

    Rule: tokens whose mean log ratio of expected counts is beyond chance (sign flips and bootstrap of whole
    units, all tested tokens at once) and beyond rounding, and whose mean probability changes the same way,
    the furthest first. Nothing is named where the models' mean KL is no more than rounding.

    Args:
        models: target and source. tokens: rows of the run's table, furthest first on either side.
    """
    target, source = models
    if summary["equal"]:
        return f"{target} and {source} say the same behind every token"
    if summary["units"] < FEWEST:
        units = counted(summary["units"], summary["unit"])
        return f"{units} are too few to tell a token from chance".capitalize()
    if summary["kl"] <= summary["floor"]:
        return f"{target} and {source} differ by no more than rounding in what they say"
    if not summary["limited"]:
        return "There are too few draws for limits of this level"
    told = tokens.filter("beyond")
    if told.is_empty():
        beside = " and rounding" if summary["measured"] else ""
        return f"No token stands out of chance{beside} in what {target} says"
    up, down = (told.filter(side=side)["text"].to_list() for side in ("promoted", "suppressed"))
    return _named(target, up, down, told)


def _named(target: str, up: Sequence[str], down: Sequence[str], told: pl.DataFrame) -> str:
    """As many as there is room for; how far the first one moves."""
    first = told.row(0, named=True)
    most = [min(3, len(up)), min(2, len(down))]
    while True:
        parts = [
            f"{how} {', '.join(token(text) for text in side[:count])}"
            for how, side, count in zip(("says more", "less"), (up, down), most, strict=True)
            if count
        ]
        if not up:
            parts = [f"says {parts[0]}"]
        title = f"{target} {' and '.join(parts)}"
        far = f"; {token(first['text'])} {times(first['mean'])}"
        far += f" ({times(first['low'])} to {times(first['high'])})"
        if len(title) <= HEADING or sum(most) == 1:
            return title + far
        at = 0 if most[0] > most[1] else 1
        most[at] -= 1


def topics_title(topics: pl.DataFrame) -> str:
    """What is raised together.

    Rule: topics that resamples of the texts find again (mean cosine of at least `STABLE`), the largest first.

    Args:
        topics: rows of the run's table, which has some.
    """
    stable = topics.filter(pl.col("stability") >= STABLE)
    count, found = topics["topic"].n_unique(), stable["topic"].n_unique()
    if stable.is_empty():
        return f"None of {count} topics is found again in resamples"
    named = [
        f"{', '.join(token(text) for text in rows['text'].head(3))} ({100 * rows['share'][0]:.0f} %)"
        for (_,), rows in stable.sort("topic", "rank").group_by("topic", maintain_order=True)
    ]
    more = f"; {found} of {count} topics are found again in resamples"
    return f"Raised together: {'; '.join(named[:2])}{more}"
