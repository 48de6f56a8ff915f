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
FEW_DRAWS = "there are too few draws for limits of this level"


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
    models: tuple[str, str],
    at: Mapping[str, Any],
    tokens: pl.DataFrame,
    units: tuple[int, str],
    limited: bool = True,
) -> str:
    """Which tokens the change promotes and suppresses at a place.

    Rule: tokens whose mean logit is beyond chance (sign flips and bootstrap of whole units, all tokens,
    blocks and positions at once) and beyond rounding, the largest first.

    Args:
        models: target and source. at: the place's row. tokens: its rows, largest first on either side.
        units: how many, and what they are called. limited: whether there are draws enough for the level.
    """
    where = place(at["layer"], at["position"])
    told = tokens.filter("beyond")
    up, down = (told.filter(side=side)["text"].to_list() for side in ("promoted", "suppressed"))
    untold = _untold(models, at, units, limited)
    if untold or told.is_empty():
        return f"{sentence(where)}: {untold or _no_token(models[0], at)}"
    return f"{_named(models[0], where, up, down)}; {beyond_random(at)}"


def _untold(models: tuple[str, str], at: Mapping[str, Any], units: tuple[int, str], limited: bool) -> str:
    """Why nothing can be told of a place; "" where tokens can be."""
    count, name = units
    lost = {
        "equal": f"the streams of {models[0]} and {models[1]} are equal",
        "rounding": f"{models[0]} and {models[1]} differ by no more than rounding; no token stands out",
        "alike": f"the {_rows(name)} are the same up to here",
    }
    if at["state"] in lost:
        return lost[at["state"]]
    if at["units"] < FEWEST:
        return _few(at["units"], count, name)
    return "" if limited else FEW_DRAWS


def _no_token(target: str, at: Mapping[str, Any]) -> str:
    if at["chance"]:
        return f"what exceeds chance in what {target} changes is within rounding"
    return f"no token stands out of chance in what {target} changes"


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


def _rows(name: str) -> str:
    return "texts" if name == "text" else "prompts"


def _few(count: int, every: int, name: str) -> str:
    """Too few of a place: of all, or of those that don't begin as others do."""
    told = "too few to tell a token from chance"
    if count == every:
        return f"{counted(count, name)} {'is' if count == 1 else 'are'} {told}"
    return f"the {_rows(name)} have {count} different beginnings up to here, {told}"


def beyond_random(at: Mapping[str, Any]) -> str:
    """How many tokens exceed what random directions of this length reach: a comparison, no test."""
    if not at["outstanding"]:
        return "random directions of this length move some token as far"
    what = "token moves" if at["outstanding"] == 1 else "tokens move"
    return f"{at['outstanding']:,} {what} further than 95 % of random directions move any"


def map_title(
    models: tuple[str, str], places: pl.DataFrame, units: tuple[int, str], limited: bool = True
) -> str:
    """At which blocks tokens stand out, and where most do.

    Rule: tokens beyond chance, as in `bars_title`, that are also moved further than random directions of
    that length move their foremost token. Places with too few different beginnings are told beside.
    """
    count, name = units
    differ = places.filter(pl.col("state").is_in(["read", "alike"]))
    if differ.is_empty():
        return _nowhere(models, places)
    read = differ.filter((pl.col("units") >= FEWEST) & (pl.col("state") == "read"))
    if read.is_empty():
        return sentence(_few(int(differ["units"].max()), count, name))  # type: ignore[arg-type]
    if not limited:
        return sentence(FEW_DRAWS)
    lost = differ.height - read.height
    beside = f"; at {lost} of {differ.height} places too few {_rows(name)} begin differently" if lost else ""
    return f"{_standing(read)}{beside}"


def _nowhere(models: tuple[str, str], places: pl.DataFrame) -> str:
    same = places["state"].unique().to_list() == ["equal"]
    how = "are equal" if same else "differ by no more than rounding"
    return f"The streams of {models[0]} and {models[1]} {how} at every block and position"


def _standing(read: pl.DataFrame) -> str:
    """Of the places that can tell a token from chance."""
    standing = read.filter(pl.col("outstanding") > 0)
    if standing.is_empty():
        if read["chance"].sum() == 0:
            return "No token stands out of chance at any block"
        if read["beyond"].sum() == 0:
            return "What exceeds chance is within rounding at every block"
        return "No token that exceeds chance is moved further than random directions move some, at any block"
    top = standing.sort("outstanding", descending=True).row(0, named=True)
    layers = blocks(standing["layer"].unique().sort().to_list())
    what = "token" if top["outstanding"] == 1 else "tokens"
    where = place(top["layer"], top["position"])
    if standing.height == 1:
        return f"Tokens stand out at {where} alone: {top['outstanding']:,} {what}"
    return f"Tokens stand out at {layers}; most at {where}: {top['outstanding']:,} {what}"
