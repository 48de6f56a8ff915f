"""Sentences of principal differences. A component is told where it exceeds unstructured differences, at all
blocks and positions at once, and rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app.difference_lens.words import counted, place
from app.frame.panel import HEADING
from app.frame.words import blocks, number, percent, sentence
from app.principal_differences.fields import SHOWN
from app.tokenwise.words import token
from engine.principal_differences.numbers import FEWEST

__all__ = ["components_title", "map_title", "names_of", "prompts_title", "tokens_title", "written_title"]

MOST = (3, 2)
"""Promoted and suppressed tokens that a title names."""
LEVEL = 0.05


def many(count: int) -> str:
    """ "1 component", "10 components or more"."""
    more = " or more" if count >= SHOWN else ""
    return f"{count} component{'s' * (count != 1)}{more}"


def untold(models: tuple[str, str], at: Mapping[str, Any], unit: str) -> str:
    """Why nothing can be told of a place; "" where components can be.

    Args:
        models: A and B. at: the place's row of the scan. unit: what is drawn, in one word or two.
    """
    a, b = models
    lost = {
        "equal": f"{a} and {b} are equal",
        "rounding": f"{a} and {b} differ by no more than rounding",
        "alike": "the prompts are the same up to here",
    }
    if at["state"] in lost:
        return lost[at["state"]]
    few = at["units"] < FEWEST
    return f"{counted(at['units'], unit)} are too few to tell components from chance" if few else ""


def components_title(models: tuple[str, str], at: Mapping[str, Any], table: pl.DataFrame, unit: str) -> str:
    """How many components the differences at a place have, and what the first takes of held-out ones.

    Rule: those whose mean square exceeds that of unstructured differences, one behind the other, by limits
    for all blocks and positions at once, and twice what rounding gives.

    Args:
        at: the place's row of the scan. table: of `tables.components`; empty where nothing can be told.
    """
    where, (a, b) = place(at["layer"], at["position"]), models
    why = untold(models, at, unit)
    if why:
        return f"{sentence(where)}: {why}"
    if not at["count"]:
        return f"No component of {b} − {a} exceeds unstructured differences at {where}"
    first = table.row(0, named=True)
    verb = "exceeds" if at["count"] == 1 else "exceed"
    told = f"{many(at['count'])} of {b} − {a} {verb} unstructured differences at {where}"
    if first["validation"] is None:
        return f"{told}; too few prompts are held out to judge it"
    share = percent(*(100 * first[end] for end in ("validation", "low", "high")))
    return f"{told}; the first takes {share} of held-out differences"


def map_title(models: tuple[str, str], scanned: pl.DataFrame, unit: str) -> str:
    """At which blocks differences have components, and where the most.

    Rule: as in `components_title`.

    Args:
        scanned: of `tables.scan`.
    """
    a, b = models
    differ = scanned.filter(pl.col("state") == "read")
    if differ.is_empty():
        states = set(scanned["state"])
        if "alike" in states:
            return f"Nothing is told of {b} − {a}: the prompts are the same up to these positions"
        how = "are equal" if states == {"equal"} else "differ by no more than rounding"
        return f"{a} and {b} {how} at every block and position"
    known = differ.filter(pl.col("units") >= FEWEST)
    if known.is_empty():
        most = int(differ["units"].max())  # type: ignore[arg-type]
        return sentence(f"{counted(most, unit)} are too few to tell components from chance")
    told = known.filter(pl.col("count") > 0)
    if told.is_empty():
        return f"No component of {b} − {a} exceeds unstructured differences at any block"
    top = told.sort("count", descending=True).row(0, named=True)
    where = place(top["layer"], top["position"])
    found = f"{b} − {a} has components at {blocks(told['layer'].unique().sort().to_list())}"
    tied = told.filter(pl.col("count") == top["count"]).height
    return (
        f"{found}; {many(top['count'])} at {tied} places"
        if tied > 1
        else f"{found}; most at {where}: {many(top['count'])}"
    )


def prompts_title(component: int, table: pl.DataFrame) -> str:
    """Which prompts lie at the ends of a component.

    Args:
        table: of `tables.prompts`, the furthest up first.
    """
    ends = [table.row(at, named=True) for at in (0, -1)]
    up, down = (f"{token(str(one['id']))} ({number(one['score'], 1)})" for one in ends)
    return f"Along component {component}, {up} lies furthest up and {down} furthest down"


def names_of(tokens: pl.DataFrame) -> list[str]:
    """Names of tokens, each once: those without a text, or of one text, with their ids."""
    told = [None if text is None else token(text) for text in tokens["text"]]
    return [
        f"#{at}" if name is None else f"{name} #{at}" if told.count(name) > 1 else name
        for name, at in zip(told, tokens["token_id"].to_list(), strict=True)
    ]


def tokens_title(component: int, told: bool, tokens: pl.DataFrame) -> str:
    """Which tokens a component promotes and suppresses.

    Rule: tokens whose logit it moves further than 95 % of unrelated directions move their foremost one:
    uniformly random ones, and ones with the same size of every coordinate.

    Args:
        told: whether the component exceeds unstructured differences.
    """
    if not told:
        return f"Component {component} is not told from unstructured differences: its tokens say nothing"
    beyond = tokens.filter("beyond").with_columns(
        name=pl.Series(names_of(tokens.filter("beyond")), dtype=pl.String)
    )
    if beyond.is_empty():
        return f"Component {component} moves no token further than unrelated directions move some"
    up = beyond.filter(side="promoted")["name"].to_list()
    down = beyond.filter(side="suppressed").sort("value")["name"].to_list()
    most = [min(len(side), limit) for side, limit in zip((up, down), MOST, strict=True)]
    while True:
        parts = [
            f"{verb} {', '.join(side[:count])}"
            for verb, side, count in zip(("promotes", "suppresses"), (up, down), most, strict=True)
            if count
        ]
        title = f"Component {component} {' and '.join(parts)}"
        if len(title) <= HEADING or sum(most) == 1:
            return title
        most[0 if most[0] > most[1] else 1] -= 1


def written_title(component: int, told: bool, table: pl.DataFrame) -> str:
    """In which matrices' output side of ΔW a component lies.

    Rule: a cosine beyond unrelated subspaces, uniformly random ones and ones with the same share of every
    coordinate, Holm over the matrices, the largest first.

    Args:
        told: as in `tokens_title`. table: of `written.written`, the largest cosine first.
    """
    if not told:
        return f"Component {component} is not told from unstructured differences: where it lies says nothing"
    if table.is_empty():
        return "No matrix that writes up to this block differs"
    beyond = table.filter(pl.col("p_holm") < LEVEL)
    if beyond.is_empty():
        return f"Component {component} lies in no matrix's ΔW further than by chance"
    named = [
        f"{row['part']} of block {row['layer']} ({number(row['cosine'])})"
        for row in beyond.head(2).iter_rows(named=True)
    ]
    more = f"; {beyond.height} of {table.height} matrices are beyond chance" if beyond.height > 2 else ""
    return f"Component {component} lies further in what ΔW writes than by chance: {', '.join(named)}{more}"
