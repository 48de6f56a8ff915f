"""Sentences about steering: α was chosen on train, what is told is read off validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app.frame import noise, words


def named(group: Mapping[str, Any]) -> str:
    """A group of prompts in words."""
    return ", ".join(f"{k} {v}" for k, v in group.items() if v is not None) or "all"


def odds(condition: Mapping[str, Any]) -> str:
    """ "log p(Yes) − log p(No)"."""
    wanted, against = ("/".join(condition[side]) for side in ("wanted", "against"))
    return f"log p({_short(wanted)}) − log p({_short(against)})"


def _short(text: str) -> str:
    return text if len(text) <= 14 else text[:13] + "…"


def signed(row: Mapping[str, float]) -> str:
    """ "+1.61 nats (1.52 to 1.71)"."""
    value = words.minus(f"{row['shift']:+.2f}")
    return f"{value} nats{words.span(row['low'], row['high'])}"


def _row(table: pl.DataFrame, series: str, alpha: float) -> dict[str, float]:
    found = table.filter((pl.col("series") == series) & (pl.col("alpha") == alpha)).row(0, named=True)
    return {"shift": found["shift"], "low": found["shift_low"], "high": found["shift_high"], **_cost(found)}


def _cost(found: Mapping[str, float]) -> dict[str, float]:
    return {"kl": found["kl"], "kl_low": found["kl_low"], "kl_high": found["kl_high"]}


def _moves(row: Mapping[str, float], what: str, floor: float) -> str:
    """Raises, lowers or isn't shown to move, by whether the interval lies beyond rounding noise (`floor`)."""
    sign = noise.exceeds(row["low"], row["high"], floor)
    if sign > 0:
        return f"raises {what} by {signed(row)}"
    if sign < 0:
        return f"lowers {what}: {signed(row)}"
    if noise.lost(row["low"], row["high"], floor):
        return f"moves {what} by what is {noise.untold(floor)}: {signed(row)}"
    return f"is not shown to move {what}: {signed(row)}"


def shift_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What v does at the chosen α, and what random directions do at the same side effect.

    Rule: it raises or lowers the log odds when the validation interval lies beyond rounding noise; beside
    random directions as `standing` says.
    """
    floor = noise.log_floor(summary)
    alpha = summary["chosen"]
    if alpha is None:
        return f"Every amplitude costs more than the budget of {condition['budget']:g} nats"
    at = words.minus(f"{alpha:g}")
    text = f"Adding v at α = {at} {_moves(_row(table, 'direction', alpha), odds(condition), floor)}"
    best = summary["equal"]["best"]
    if best is None:  # there is no side effect to compare at
        return text
    if best["difference"] is None:
        return f"{text}; no random direction reaches its side effect"
    random, found = f"{best['draws']} random directions of the same side effect", standing(best, floor)
    if found:
        return f"{text}; {'further' if found > 0 else 'less far'} than all {random}"
    ends = " to ".join(words.minus(f"{best[end]:+.2f}") for end in ("least", "most"))
    return f"{text}; not told from {random}: {ends}"


def standing(best: Mapping[str, Any], floor: float = 0.0) -> int:
    """1 where v moves the words further than random directions, −1 where less, 0 where that isn't told.

    Rule: further, when the interval of the paired difference from the mean of the random directions lies
    above 0, by more than rounding does (`floor`), and v's shift is larger than every one of theirs, and than
    a further one of them would be with 97.5 % probability; less, the other way round.
    """
    more, own = best["difference"], best["direction"]["shift"]
    most = max(end for end in (best["most"], best.get("limit")) if end is not None)
    least = min(end for end in (best["least"], best.get("floor")) if end is not None)
    sign = noise.exceeds(more["low"], more["high"], floor)
    return int(sign > 0 and own > most) - int(sign < 0 and own < least)


def cost_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Side effect of v at the chosen α, or at the smallest amplitudes where none is within the budget."""
    alpha = summary["chosen"]
    where = f"prompts that should stay ({named(condition['neutral'])})"
    if alpha is None:
        least = min(condition["alphas"])
        at = min((_row(table, "direction", sign * least) for sign in (-1, 1)), key=lambda row: row["kl"])
        return f"Even α = {least:g} moves the {where} by {_kl(at, summary)}, more than the budget"
    text = f"It moves the {where} by {_kl(_row(table, 'direction', alpha), summary)}"
    if abs(alpha) == max(condition["alphas"]):
        return text + "; that was the largest amplitude tried"
    return text


def _kl(row: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    floor = noise.kl_floor(summary)
    limit = max(float(summary["self_check"]["limit"]), floor)
    if row["kl"] <= limit or noise.hidden(row, floor, "kl_low"):
        limit = max(limit, row["kl_high"])
        return f"at most {words.nats(limit)} nats, which is rounding"
    return words.nats_span({"kl": row["kl"], "low": max(row["kl_low"], 0.0), "high": row["kl_high"]})


def ablation_title(table: pl.DataFrame, condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What taking v away does, and what it costs."""
    row, dims = _row(table, "ablate", 0.0), condition.get("dims", 1)
    moves = _moves(row, odds(condition), noise.log_floor(summary))
    what = "v" if dims == 1 else f"{dims} directions"
    text = f"Taking {what} away {moves}; its side effect is {_kl(row, summary)}"
    if dims == 1:
        return text
    random = table.filter(pl.col("series") == "ablate_random").row(0, named=True)
    ends = " to ".join(words.minus(f"{random[end]:+.2f}") for end in ("shift_least", "shift_most"))
    return f"{text}; random spans of {dims} move it by {ends}"


def equal_title(summary: Mapping[str, Any]) -> str:
    """Whether v moves the words more than random directions that cost as much; the rule is `standing`'s."""
    best, cost = summary["equal"]["best"], words.nats(summary["equal"]["level"])
    if best["difference"] is None:
        return f"No random direction reaches v's side effect of {cost} nats on the amplitudes tried"
    own, found = signed(best["direction"]), standing(best, noise.log_floor(summary))
    text = f"At the same side effect ({cost} nats) v"
    if found:
        text += f" moves the words {'further' if found > 0 else 'less'} than all {best['draws']} random"
        return f"{text} directions; {own} against {signed(best['random'])}"
    ends = " to ".join(words.minus(f"{best[end]:+.2f}") for end in ("least", "most"))
    return f"{text} is not told from random directions; {own}, theirs {ends}"
