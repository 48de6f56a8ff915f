"""Sentences of a difference lens. A token is named only where it exceeds chance and rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.frame.panel import HEADING
from app.frame.words import blocks, position_said, sentence
from app.tokenwise.words import token
from engine.difference_lens.numbers import FEWEST

__all__ = ["bars_title", "beyond_random", "counted", "map_title", "names_of", "place"]

MOST = (3, 2)
"""Promoted and suppressed tokens that a title names."""


def names_of(tokens: pl.DataFrame) -> list[str]:
    """Names of tokens, each once: those that look alike with their ids."""
    told = [token(text) for text in tokens["text"]]
    ids = tokens["token_id"].to_list()
    return [
        f"{name} #{number}" if told.count(name) > 1 else name for name, number in zip(told, ids, strict=True)
    ]


def place(layer: int, position: str) -> str:
    """ "block 5, the decision token"."""
    return f"block {layer}, {position_said(position)}"


def bars_title(
    models: tuple[str, str], at: Mapping[str, Any], tokens: pl.DataFrame, units: tuple[int, str]
) -> str:
    """Which tokens the change promotes and suppresses at a place.

    Rule: tokens whose mean logit is beyond chance (sign flips and bootstrap of whole units, all tokens,
    blocks and positions at once) and beyond rounding, the largest first.

    Args:
        models: target and source. at: the place's row. tokens: its rows, largest first on either side.
        units: how many, and what they are called.
    """
    target, source = models
    where = place(at["layer"], at["position"])
    if at["state"] == "equal":
        return f"{sentence(where)}: the streams of {target} and {source} are equal"
    if at["state"] == "rounding":
        return (
            f"{sentence(where)}: {target} and {source} differ by no more than rounding; no token stands out"
        )
    count, name = units
    if count < FEWEST:
        return f"{sentence(where)}: {_few(count, name)}"
    told = tokens.filter("beyond")
    up, down = (told.filter(side=side)["text"].to_list() for side in ("promoted", "suppressed"))
    if not up and not down:
        return f"{sentence(where)}: no token stands out of chance in what {target} changes"
    return f"{_named(target, where, up, down)}; {beyond_random(at)}"


def _named(target: str, where: str, up: Sequence[str], down: Sequence[str]) -> str:
    """ "tuned promotes “a” and “b”, suppresses “c”, at block 5": as many as there is room for."""
    most = [min(len(side), limit) for side, limit in zip((up, down), MOST, strict=True)]
    while True:
        parts = [
            f"{verb} {_listed(side[:count])}"
            for verb, side, count in zip(("promotes", "suppresses"), (up, down), most, strict=True)
            if count
        ]
        title = f"{target} {' and '.join(parts)} at {where}"
        if len(title) <= HEADING or sum(most) == 1:
            return title
        at = 0 if most[0] > most[1] else 1
        most[at] -= 1


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(token(text) for text in texts)


def counted(count: int, name: str) -> str:
    """ "140 pairs", "1 category"."""
    plural = {"category": "categories"}.get(name, f"{name}s")
    return f"1 {name}" if count == 1 else f"{count} {plural}"


def _few(count: int, name: str) -> str:
    return f"{counted(count, name)} {'is' if count == 1 else 'are'} too few to tell a token from chance"


def beyond_random(at: Mapping[str, Any]) -> str:
    """How many tokens exceed what random directions of this length reach: a comparison, no test."""
    if not at["outstanding"]:
        return "random directions of this length move some token as far"
    what = "token moves" if at["outstanding"] == 1 else "tokens move"
    return f"{at['outstanding']:,} {what} further than 95 % of random directions move any"


def map_title(models: tuple[str, str], places: pl.DataFrame, units: tuple[int, str]) -> str:
    """At which blocks tokens stand out, and where most do.

    Rule: tokens beyond chance, as in `bars_title`, that are also moved further than random directions of
    that length move their foremost token.
    """
    target, source = models
    read = places.filter(state="read")
    if read.is_empty():
        same = places["state"].unique().to_list() == ["equal"]
        how = "are equal" if same else "differ by no more than rounding"
        return f"The streams of {target} and {source} {how} at every block and position"
    count, name = units
    if count < FEWEST:
        return f"{_few(count, name)}"
    standing = read.filter(pl.col("outstanding") > 0)
    if standing.is_empty():
        if read["beyond"].sum() == 0:
            return "No token stands out of chance at any block"
        return "No token that exceeds chance is moved further than random directions move some, at any block"
    top = standing.sort("outstanding", descending=True).row(0, named=True)
    layers = blocks(standing["layer"].unique().sort().to_list())
    what = "token" if top["outstanding"] == 1 else "tokens"
    where = place(top["layer"], top["position"])
    if standing.height == 1:
        return f"Tokens stand out at {where} alone: {top['outstanding']:,} {what}"
    return f"Tokens stand out at {layers}; most at {where}: {top['outstanding']:,} {what}"
