"""Sentences about live patches, computed from stored results; each with its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import polars as pl

from app.frame import noise, words
from app.transport.words import constant_note
from engine.patching.mapped_spec import CONTROLS
from engine.stats.means import FEWEST

NAMES = ("mapped", "raw", *CONTROLS)
"""Kinds of replacement in the order in which they are shown."""
MATCHED = "moment-matched"
SAID = {"raw": MATCHED}
"""Kinds of replacement that a reader knows under another name."""


def amplitude(condition: Mapping[str, Any]) -> str:
    """What α multiplies, in words."""
    if condition["scale"] == "deviation":
        return f"times the replacement's deviation from {condition['target']}'s mean over the train split"
    return "times the whole replacement vector"


def reading(condition: Mapping[str, Any]) -> str:
    """Which token is patched, and at which the next token is read, in words."""
    where = words.read_said(condition)
    return f"patched at {words.position_said(condition['position'])}, read {where}"


def reported(condition: Mapping[str, Any]) -> str:
    """Which prompts a result is about, in words."""
    chosen = words.limits_said(condition)
    return ", ".join([f"split: {condition.get('split', 'validation')}", *chosen])


def direction(condition: Mapping[str, Any]) -> str:
    """ "tuned ← base"."""
    return f"{condition['target']} ← {condition['source']}"


def site(condition: Mapping[str, Any]) -> str:
    """ "mlp_out of block 5"."""
    return f"{condition['component']} of block {condition['layer']}"


def level_with(rows: pl.DataFrame, row: Mapping[str, Any]) -> pl.DataFrame:
    """The rows whose interval comes within rounding noise (column `noise`) of `row`'s: no title may tell them
    apart. `row` is one of them."""
    return rows.filter(
        (pl.col("low") <= row["high"] + pl.col("noise")) & (pl.col("high") >= row["low"] - pl.col("noise"))
    )


def span(value: Mapping[str, float] | None) -> str:
    """ "0.17 (0.07 to 0.31)" from estimate, low, high; a dash without a value."""
    if value is None:
        return "–"
    ends = f"{words.nats(value['low'])} to {words.nats(value['high'])}"
    return f"{words.nats(value['estimate'])} ({ends})"


def percent(value: Mapping[str, float]) -> str:
    """ "99.8 % (99.7 to 99.9)" with digits that tell the ends apart."""
    return words.percent(value["estimate"], value["low"], value["high"])


def verdict(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What the map is worth at one site, on validation prompts, at the α chosen on train.

    Rule: 'lowers' or 'raises' KL when the interval of ΔKL lies beyond the target's rounding noise, else 'not
    shown to change'; 'not shown to lower' where the interval of the share includes 0; where KL_raw is
    within that noise or the self-patch floor there is nothing to lower.
    Fewer than 12 prompts (or pairs) are too few to tell. Without a raw condition KL_mapped is told.
    """
    floor = noise.kl_floor(summary)
    found = summary["splits"]["validation"]
    start = f"{direction(condition)}, {site(condition)}: "
    at = f" at α = {summary['best']['alpha']:g}"
    mapped = found["kl"]["mapped"]
    if found["delta"] is None:
        lies = f"what the mapped activation does is {noise.untold(floor)}: {span(mapped)}{at}"
        does = f"the mapped activation moves the next token by {span(mapped)} nats{at}{losers(summary)}"
        return start + (lies if noise.hidden(mapped, floor) else does)
    if found["drop"] is None:
        return (
            start
            + f"the {MATCHED} activation is not shown to change anything; mapped: {span(mapped)} nats{at}"
        )
    return start + _changed(summary, at, floor)


def _changed(summary: Mapping[str, Any], at: str, floor: float) -> str:
    """What a map changes of KL_raw on validation prompts, and which controls it beats."""
    found = summary["splits"]["validation"]
    raw, mapped, delta = found["kl"]["raw"], found["kl"]["mapped"], found["delta"]
    told = f"from {words.nats(raw['estimate'])} to {words.nats(mapped['estimate'])} nats"
    if few(found):
        return f"{found['n_groups']} prompts are too few to tell what the map changes; KL {told}{at}"
    sign = noise.exceeds(delta["low"], delta["high"], floor)
    if sign > 0 and found["drop"]["low"] <= 0:
        return f"the map is not shown to lower KL: {percent(found['drop'])}; {told}{at}{losers(summary)}"
    if sign > 0:
        return f"the map lowers KL by {percent(found['drop'])}; {told}{at}{losers(summary)}"
    if sign < 0:
        return f"the map raises KL; {told}{at}{losers(summary)}"
    if noise.lost(delta["low"], delta["high"], floor):
        return f"what the map changes is {noise.untold(floor)}; KL {told}{at}, ΔKL {span(delta)}"
    return f"the map is not shown to change KL; {told}{at}, ΔKL {span(delta)}{losers(summary)}"


def alpha_title(rows: pl.DataFrame, floor: float = 0.0) -> str:
    """What the amplitudes at both ends do, and how far the others go beyond them.

    No amplitude is called the best: all of them are measured on the prompts that are told of. Where no
    interval lies above `floor`, the model's rounding noise, that is all that is said.
    """
    ordered = rows.sort("alpha")
    if floor and (ordered["low"] <= floor).all():
        return f"What the patch does is {noise.untold(floor)} at any α"
    first, last = ordered.row(0, named=True), ordered.row(-1, named=True)
    text = f"From α = {first['alpha']:g} to {last['alpha']:g} the effect goes from {words.nats_span(first)} "
    text += f"to {words.nats_span(last)}"
    between, ends = ordered["kl"].to_list()[1:-1], sorted((first["kl"], last["kl"]))
    outside = [kl for kl in between if not ends[0] <= kl <= ends[1]]
    if not outside:
        return text
    return f"{text}; between {words.nats(min(between))} and {words.nats(max(between))} on the way"


def few(split: Mapping[str, Any]) -> bool:
    """Whether a split has fewer prompts (or pairs) than a mean is judged on; `engine.stats.means.FEWEST`."""
    return int(split.get("n_groups", FEWEST)) < FEWEST


def losers(summary: Mapping[str, Any]) -> str:
    """Which controls the map beats: the interval of KL_control − KL_mapped lies above rounding noise.

    Nothing is said of fewer than 12 prompts (or pairs).
    """
    if few(summary["splits"]["validation"]):
        return ""
    found = summary["splits"]["validation"]["controls"]
    level = [kind for kind in CONTROLS if kind in found and not found[kind]["beaten"]]
    if not found:
        return ""
    if not level:
        return "; every control disturbs more"
    return f"; not told from these controls: {', '.join(level)}"


def controls_note(condition: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What the controls are, and which were left out."""
    note = (
        f"Controls at the same α: bogus, the map of block {summary['bogus_layer']}; shuffled, a map fitted "
        "on permuted train pairs; random, the map's output rotated at random with its spectrum kept; mean, "
        "the target's train mean."
    )
    raw = "stays at α = 1" if condition["raw_alpha"] == "fixed" else "has the same α"
    if "raw" not in summary["left_out"]:
        note += f" The {MATCHED} activation (raw, each dimension by itself) {raw}."
    for kind, why in summary["left_out"].items():
        note += f" No {kind}: {why}."
    return note


def edge_note(summary: Mapping[str, Any]) -> str:
    """A warning where the best α is an end of the grid, so that a better one may lie beyond; else nothing."""
    best, grid = float(summary["best"]["alpha"]), [float(a) for a in summary["alphas"]]
    if len(grid) < 2 or best not in (grid[0], grid[-1]):
        return ""
    return f" The best α, {best:g}, is an end of the grid: a better one may lie beyond."


def null_note(summary: Mapping[str, Any]) -> str:
    """The self-patch, the interval, and what so few prompts may not have shown."""
    check, interval = summary["self_check"], summary["interval"]
    rounding = f"{float(check['value']):.1g} (limit {float(check['limit']):.0e})".replace("e-0", "e-")
    return (
        f"Interval: {interval['level']:.0%} {interval['method']} over {interval['unit']}s. Null: the "
        f"target's own activation put back gives a KL of {rounding} nats."
        f"{unseen(summary)}{noise.note(summary)}"
    )


def unseen(summary: Mapping[str, Any]) -> str:
    """The share of prompts on which a map may fail without any of these showing it: 3/n, at 95 %."""
    units = summary.get("splits", {}).get("validation", {}).get("n_groups")
    if not units:
        return ""
    share = min(100.0, 300 / units)
    return f" {units} {summary['interval']['unit']}s may show no failure although {share:.0f} % of all fail."


def map_note(summary: Mapping[str, Any]) -> str:
    """The map, how well it fits and predicts."""
    found = summary["map"]

    def number(name: str) -> str:
        return "undefined" if found[name] is None else f"{found[name]:.3g}"

    still = summary.get("constant_dimensions", {})
    constant = constant_note(int(still.get("source", 0)), int(still.get("target", 0)))
    return (
        f"Map: {found['words']}, fitted on {found['n']} train prompts; R² {number('r2_train')} on train, "
        f"{number('r2_validation')} on validation, {number('r2_shuffled')} when fitted on permuted pairs."
        + (f" {constant}" if constant else "")
    )


def tokens(texts: Sequence[str], chances: Sequence[float], count: int = 3) -> str:
    """The likeliest next tokens with their probabilities, white space made visible."""
    pairs = list(zip(texts, chances, strict=True))[:count]
    return "  ".join(f"{visible(t)} {100 * p:.0f}%" for t, p in pairs)


@lru_cache(maxsize=8192)
def visible(token: str) -> str:
    """A token with its white space shown."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
