"""Sentences about heads, computed from stored results; each with its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app import words

NEEDED = 95.0
"""Percent: what is left without a head may reach this, and the head isn't called needed."""
PREDICTS = 0.025
"""p below which a predictor is said to order the heads: 5 % shared by the two that are tested."""
PREDICTORS = {"gradient": "gradient × activation", "direct": "direct attribution"}


def percent(row: Mapping[str, Any], prefix: str = "") -> str:
    """ "98 % (95 to 101)" from coverage, low and high, or from the columns with a prefix."""
    value, low, high = (float(row[prefix + name]) for name in ("coverage", "low", "high"))
    digits = 0 if high >= 10 else 1 if high >= 1 else 2
    around = f"{_plain(low, digits)} to {_plain(high, digits)}"
    return f"{_plain(value, digits)} % ({around})"


def _plain(value: float, digits: int) -> str:
    """Fixed digits without a negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def heads(numbers: Sequence[int]) -> str:
    """ "head 2", "heads 2 and 6", "heads 0, 2 and 6"; more than six are counted."""
    names = [str(n) for n in numbers]
    if len(names) == 1:
        return f"head {names[0]}"
    if len(names) > 6:
        return f"{len(names)} heads ({', '.join(names[:5])}, …)"
    return f"heads {', '.join(names[:-1])} and {names[-1]}"


def whole(condition: Mapping[str, Any], effect: Mapping[str, Any]) -> str:
    """ "block 4's effect on tuned (0.37 nats)"."""
    return f"block {condition['layer']}'s effect on {condition['target']} ({words.nats(effect['kl'])} nats)"


def singles_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Which heads cover most alone.

    Rule: the largest coverage, with every head whose interval overlaps its interval; only one that overlaps
    none is called the largest.
    """
    top = table.sort("coverage").row(-1, named=True)
    level = table.filter((pl.col("low") <= top["high"]) & (pl.col("high") >= top["low"]))["head"].to_list()
    of = whole(condition, summary["effect"])
    if len(level) == 1:
        return f"Head {top['head']} alone covers {percent(top)} of {of}, more than any other head"
    if len(level) == table.height:
        return f"No head is told apart by what it covers alone of {of}: the largest is {percent(top)}"
    named = heads(sorted(level))
    return (
        f"{named[0].upper()}{named[1:]} cover most of {of} alone, level within the intervals: up to "
        f"{percent(top)}"
    )


def curve_title(curve: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """How many heads carry the effect.

    Rule: the smallest greedy set that covers at least 95 % on train, told with its coverage on validation;
    "localised" as `engine.analysis.heads.is_localised` says.
    """
    of, found = whole(condition, summary["effect"]), summary["carrying"]
    if found is None:
        last = curve.filter(pl.col("kind") == "greedy").sort("k").row(-1, named=True)
        return f"No set of up to {last['k']} heads carries {of}: the greedy {last['k']} cover {percent(last)}"
    named, count = heads(found["heads"]), len(found["heads"])
    carry = "carries" if count == 1 else "carry"
    text = f"{named[0].upper()}{named[1:]} {carry} {percent(found)} of {of}"
    if found["localised"]:
        return f"{text}: localised"
    drawn = f"{found['random']:.0f} %"
    return f"{text}; {count} of {summary['n_heads']} heads, where random sets of that size cover {drawn}"


def without_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Which head cannot be left out.

    Rule: heads without which the interval of what is left ends below 95 %; the one with the least left is
    called so only where its interval overlaps no other's.
    """
    of = whole(condition, summary["effect"])
    needed = table.filter(pl.col("without_high") < NEEDED).sort("without_coverage")
    if not needed.height:
        least = percent(table.sort("without_coverage").row(0, named=True), "without_")
        return f"No single head is needed: without any one of them at least {least} of {of} is left"
    names = heads(sorted(needed["head"].to_list()))
    first = needed.row(0, named=True)
    text = f"{names[0].upper()}{names[1:]} can't be left out of {of}"
    alone = table.filter(pl.col("without_low") <= first["without_high"]).height == 1
    if alone:
        return f"{text}: without head {first['head']} {percent(first, 'without_')} is left"
    return f"{text}: without one of them as little as {percent(first, 'without_')} is left"


def both_title(pairs: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Which two heads cover most together.

    Rule: the largest coverage of a pair, with every pair whose interval overlaps its interval.
    """
    top = pairs.sort("coverage").row(-1, named=True)
    level = pairs.filter((pl.col("low") <= top["high"]) & (pl.col("high") >= top["low"])).height
    of, named = whole(condition, summary["effect"]), f"eads {top['first']} and {top['second']}"
    if level == 1:
        return f"H{named} cover {percent(top)} of {of}, more than any other pair"
    text = f"{level} of {pairs.height} pairs cover most of {of}, level within the intervals"
    return f"{text}: h{named} {percent(top)}"


def pairs_title(pairs: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Whether two heads do more together than each alone.

    Rule: pairs whose interaction's interval, which holds for all pairs together, excludes 0 by at least half
    a percent; the largest of them in size is named with its interval, not ranked.
    """
    of = whole(condition, summary["effect"])
    known = pairs.filter((pl.col("interaction_low") > 0.5) | (pl.col("interaction_high") < -0.5))
    if not known.height:
        return f"No pair of heads is shown to do more or less together than the sum of the two, of {of}"
    top = known.sort(pl.col("interaction").abs()).row(-1, named=True)
    low, high = sorted(abs(top[f"interaction_{end}"]) for end in ("low", "high"))
    more = "more" if top["interaction"] > 0 else "less"
    text = (
        f"Heads {top['first']} and {top['second']} together do {abs(top['interaction']):.1f} % "
        f"({low:.1f} to {high:.1f}) {more} of {of} than the sum of the two"
    )
    others = known.height - 1
    return text + (f"; {others} other pairs of {pairs.height} interact" if others else "; no other pair does")


def predictors_title(summary: Mapping[str, Any]) -> str:
    """Whether the cheap predictors order the heads as measured coverage does.

    Rule: Spearman's ρ > 0 with a permutation p below 0.025 for each of the two.
    """
    found = summary["correlations"]
    told = {name: _told(found[key]) for key, name in PREDICTORS.items()}
    good = [
        name
        for key, name in PREDICTORS.items()
        if found[key]["rho"] is not None and found[key]["rho"] > 0 and found[key]["p"] < PREDICTS
    ]
    bad = [name for name in told if name not in good]
    if not good:
        return f"Neither {bad[0]} ({told[bad[0]]}) nor {bad[1]} ({told[bad[1]]}) is shown to order the heads"
    start = " and ".join(f"{name} ({told[name]})" for name in good)
    text = f"{start[0].upper()}{start[1:]} order{'' if len(good) > 1 else 's'} the heads as coverage does"
    return text + (f"; {bad[0]} is not shown to ({told[bad[0]]})" if bad else "")


def _told(found: Mapping[str, Any]) -> str:
    if found["rho"] is None:
        return str(found["reason"])
    return f"ρ = {found['rho']:.2f}, p = {found['p']:.2g}"


def map_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The head that moves most on train, as validation sees it, and the blocks that can't be covered."""
    blank = [block["layer"] for block in summary["blocks"] if not block["shown"]]
    nothing = f"nothing to cover in {words.blocks(blank)}" if blank else "every block can be covered"
    if not summary["top"]:
        return f"No block's heads move {condition['target']} beyond rounding: {nothing}"
    first = summary["top"][0]
    chosen = (pl.col("layer") == first["layer"]) & (pl.col("head") == first["head"])
    row = table.filter(chosen).row(0, named=True)
    first_on_train = f"Head {row['head']} of block {row['layer']}, the first on train,"
    return (
        f"{first_on_train} moves {condition['target']} by {words.nats(row['kl'])} nats alone: "
        f"{percent(row)} of what its block's heads do; {nothing}"
    )


def cells_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Which head of all blocks moves most alone, in nats.

    Rule: the largest mean KL, with every head whose interval overlaps its interval; nothing is said to move
    where no block's heads do.
    """
    if not summary["top"]:
        return f"No head of any block moves {condition['target']} beyond rounding"
    top = table.sort("kl").row(-1, named=True)
    others = table.filter((pl.col("kl_low") <= top["kl_high"]) & (pl.col("kl_high") >= top["kl_low"]))
    span = words.nats_span({"kl": top["kl"], "low": top["kl_low"], "high": top["kl_high"]})
    name = f"head {top['head']} of block {top['layer']}"
    if others.height == 1:
        return f"{name[0].upper()}{name[1:]} moves {condition['target']} more than any other head: {span}"
    return (
        f"{others.height} heads move {condition['target']} most, level within the intervals; {name}: {span}"
    )


def kl_title(blocks: pl.DataFrame, condition: Mapping[str, Any]) -> str:
    """Which block's heads do most, all together.

    Rule: the largest mean KL of all heads, with the blocks whose interval overlaps its interval.
    """
    top = blocks.sort("kl").row(-1, named=True)
    if not blocks["shown"].any():
        return (
            f"All heads of a block together do nothing beyond rounding to {condition['target']}, in any block"
        )
    level = blocks.filter((pl.col("low") <= top["high"]) & (pl.col("high") >= top["low"]))["layer"].to_list()
    text = f"All heads together move {condition['target']} most at {words.blocks(level)}"
    tail = "" if len(level) == 1 else f" at block {top['layer']}, the others level within the intervals"
    return f"{text}: {words.nats_span(top)}{tail}"
