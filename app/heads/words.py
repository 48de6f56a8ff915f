"""Sentences about heads, computed from stored results; each with its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from app.frame import noise, words

NEEDED = 95.0
"""Percent: what is left without a head may reach this, and the head isn't called needed."""
PREDICTS = 0.025
"""p below which a predictor is said to order the heads: 5 % shared by the two that are tested."""
PREDICTORS = {"gradient": "gradient × activation", "direct": "direct attribution"}


class Standing(NamedTuple):
    """The row that train puts first, and the others that validation leaves level with it or above it."""

    top: dict[str, Any]
    level: pl.DataFrame
    above: pl.DataFrame


def percent(row: Mapping[str, Any], prefix: str = "") -> str:
    """ "98 % (95 to 105)" from coverage, low and high, or from the columns with a prefix."""
    value, low, high = (float(row[prefix + name]) for name in ("coverage", "low", "high"))
    return words.percent(value, low, high)


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


def _first(
    rows: pl.DataFrame, column: str, low: str = "low", high: str = "high", floor: float = 0.0
) -> Standing:
    """The row that is largest on train, and where its interval on validation leaves the others.

    Rule: level with it are those whose interval comes within `floor`, what rounding does, of its own; above
    those whose interval lies further beyond it.
    """
    order = rows.sort(column, descending=True, nulls_last=True)
    top, others = order.row(0, named=True), order[1:]
    above = others.filter(pl.col(low) > top[high] + floor)
    level = others.filter((pl.col(high) >= top[low] - floor) & (pl.col(low) <= top[high] + floor))
    return Standing(top, level, above)


def share_floor(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> float:
    """The target's rounding noise in percent of the whole effect: no smaller difference of coverage is
    told."""
    floor = noise.kl_floor(summary)
    return 100 * floor / float(summary["effect"]["kl"]) if floor else 0.0


def _rest(found: Standing, name: Callable[[pl.DataFrame], str]) -> str:
    """ "; heads 2 and 3 are level within the intervals, head 4 above", where there are any."""
    parts = []
    if found.level.height:
        parts.append(f"{name(found.level)} {_be(found.level)} level within the intervals")
    if found.above.height:
        parts.append(f"{name(found.above)} {'' if parts else _be(found.above) + ' '}above")
    return "; " + ", ".join(parts) if parts else ""


def _be(rows: pl.DataFrame) -> str:
    return "is" if rows.height == 1 else "are"


def _named_heads(rows: pl.DataFrame) -> str:
    return heads(sorted(rows["head"].to_list()))


def _counted(rows: pl.DataFrame) -> str:
    return "1 other" if rows.height == 1 else f"{rows.height} others"


def singles_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What the head that covers most on train covers on validation, and which heads are level or above.

    Rule: it is said to cover more than any other when its interval lies above all others' by more than
    rounding noise.
    """
    found = _first(table, "coverage_train", floor=share_floor(condition, summary))
    of = whole(condition, summary["effect"])
    covers = f"alone covers {percent(found.top)} of {of}"
    if found.top["low"] <= 0:
        covers = f"is not shown to cover any of {of}: {percent(found.top)}"
    name = f"ead {found.top['head']}, the first on train,"
    if not found.level.height and not found.above.height:
        return f"H{name} {covers}; more than any other head"
    if found.level.height == table.height - 1:
        return f"No head is told apart by what it covers alone; h{name} {covers}"
    return f"H{name} {covers}{_rest(found, _named_heads)}"


def curve_title(curve: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """How many heads carry the effect.

    Rule: the smallest greedy set that covers at least 95 % on train, told with its coverage on validation;
    "localised" as `engine.heads.numbers.is_localised` says.
    """
    of, found = whole(condition, summary["effect"]), summary["carrying"]
    if found is None:
        last = curve.filter(pl.col("kind") == "greedy").sort("k").row(-1, named=True)
        text = f"No set of up to {last['k']} heads is shown to carry {of}"
        return f"{text}: the greedy {last['k']} cover {percent(last)}"
    named, count = heads(found["heads"]), len(found["heads"])
    name, carry = f"{named[0].upper()}{named[1:]}", "carries" if count == 1 else "carry"
    if found["low"] <= 0:
        return f"{name} {'is' if count == 1 else 'are'} not shown to carry {of}: {percent(found)}"
    text = f"{name} {carry} {percent(found)} of {of}"
    if found["localised"]:
        return f"{text}: localised"
    drawn = f"{found['random']:.0f} %"
    return f"{text}; {count} of {summary['n_heads']} heads, where random sets of that size cover {drawn}"


def without_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Which heads cannot be left out, and what is left without the one that is missed most on train.

    Rule: a head is needed when the interval of what is left without it ends below 95 % less rounding noise.
    """
    of = whole(condition, summary["effect"])
    enough = NEEDED - share_floor(condition, summary)
    needed = table.filter(pl.col("without_high") < enough)["head"].to_list()
    names = heads(sorted(needed)) if needed else ""
    text = (
        f"{names[0].upper()}{names[1:]} can't be left out of {of}"
        if needed
        else f"No single head is shown to be needed for {of}"
    )
    if "without_train" not in table.columns:  # stored before
        return text
    row = table.sort("without_train").row(0, named=True)
    return f"{text}; without head {row['head']}, missed most on train, {percent(row, 'without_')} is left"


def both_title(pairs: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What the pair of heads that covers most on train covers on validation, and how many are level or above.

    Rule: it is said to cover more than any other when its interval lies above all others' by more than
    rounding noise.
    """
    of = whole(condition, summary["effect"])
    if "coverage_train" not in pairs.columns:  # stored before
        return f"What {pairs.height} pairs of heads cover of {of}"
    found = _first(pairs, "coverage_train", floor=share_floor(condition, summary))
    text = f"Heads {found.top['first']} and {found.top['second']}, first on train, cover "
    text += f"{percent(found.top)} of {of}"
    if not found.level.height and not found.above.height:
        return f"{text}; more than any other pair"
    return f"{text}{_rest(found, _counted)}"


def pairs_title(pairs: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Whether two heads do more together than each alone.

    Rule: pairs whose interaction's interval, which holds for all pairs together, excludes 0 by at least half
    a percent and by rounding noise; that of them which is largest in size on train is named with its
    interval, not ranked.
    """
    of = whole(condition, summary["effect"])
    least = max(0.5, share_floor(condition, summary))
    known = pairs.filter((pl.col("interaction_low") > least) | (pl.col("interaction_high") < -least))
    if not known.height:
        return f"No pair of heads is shown to do more or less together than its sum, of {of}"
    by = "interaction_train" if "interaction_train" in pairs.columns else "interaction"  # stored before
    top = known.sort(pl.col(by).abs()).row(-1, named=True)
    low, high = sorted(abs(top[f"interaction_{end}"]) for end in ("low", "high"))
    more = "more" if top["interaction"] > 0 else "less"
    text = (
        f"Heads {top['first']} and {top['second']} together do {abs(top['interaction']):.1f} % "
        f"({low:.1f} to {high:.1f}) {more} of {of} than their sum"
    )
    others = known.height - 1
    return text + (
        f"; {others} other pairs of {pairs.height} interact" if others else "; no other pair is shown to"
    )


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
        nor = f"Neither {bad[0]} nor {bad[1]} is shown to order the heads"
        return f"{nor}; {told[bad[0]]} and {told[bad[1]]}"
    start = " and ".join(good)
    text = f"{start[0].upper()}{start[1:]} order{'' if len(good) > 1 else 's'} the heads as coverage does; "
    text += " and ".join(told[name] for name in good)
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
    floor = noise.kl_floor(summary)
    if noise.hidden(row, floor, "kl_low"):
        within = f"alone by what is {noise.untold(floor)}; {nothing}"
        return f"{first_on_train} moves {condition['target']} {within}"
    return (
        f"{first_on_train} moves {condition['target']} by {words.nats(row['kl'])} nats alone; "
        f"{percent(row)} of what its block's heads do; {nothing}"
    )


def cells_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """How far the head that moves most on train, of all blocks, moves validation prompts, in nats.

    Rule: it is said to move more than any other when its interval lies above all others' by more than
    rounding noise; nothing is said to move where no block's heads do, or where its interval reaches that
    noise.
    """
    if not summary["top"]:
        return f"No head of any block moves {condition['target']} beyond rounding"
    floor = noise.kl_floor(summary)
    found = _first(table, "kl_train", "kl_low", "kl_high", floor)
    top = found.top
    if noise.hidden(top, floor, "kl_low"):
        name = f"Head {top['head']} of block {top['layer']}, the first on train,"
        return f"{name} moves {condition['target']} alone by what is {noise.untold(floor)}"
    span = words.nats_span({"kl": top["kl"], "low": top["kl_low"], "high": top["kl_high"]})
    text = f"Head {top['head']} of block {top['layer']}, the first on train, moves {condition['target']}"
    if not found.level.height and not found.above.height:
        return f"{text} more than any other head: {span}"
    return f"{text} by {span}{_rest(found, _counted)}"


def kl_title(blocks: pl.DataFrame, condition: Mapping[str, Any], floor: float = 0.0) -> str:
    """How far all heads of the block that moves most on train move validation prompts.

    Rule: it is said to be the most when its interval lies above those of all other blocks by more than
    `floor`, the target's rounding noise.
    """
    target = condition["target"]
    if not blocks["shown"].any():
        return f"All heads of a block together do nothing beyond rounding to {target}, in any block"
    if "kl_train" not in blocks.columns:  # stored before
        return f"What all heads of a block together do to {target}"
    found = _first(blocks, "kl_train", floor=floor)
    span, layer = words.nats_span(found.top), found.top["layer"]
    if not found.level.height and not found.above.height:
        return f"All heads together move {target} most at block {layer}: {span}; it is the first on train"

    def named(rows: pl.DataFrame) -> str:
        return words.blocks(rows["layer"].to_list())

    return f"All heads of block {layer}, the first on train, move {target} by {span}{_rest(found, named)}"
