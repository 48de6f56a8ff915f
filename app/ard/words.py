"""Sentences about fitted lengthscales: each has its rule written down and says no more than was tested."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from app.frame.words import blocks, number
from app.geometry.words import p_text
from engine.ard.spectrum import LEVEL, OUTLYING, Found, judged

RULES = {
    "outlier": f"{OUTLYING} robust sd below the median",
    "mixture": "where two Gaussians cross",
    "fixed": "chosen by hand",
    "median": "the median",
}
"""How each rule of `ard_spectrum.surviving` sets the threshold."""
MEDIAN = "the median leaves half of all dimensions under it by construction"
NO_HELD_OUT = "there are no held-out problems to test it on"
TOO_FEW = "held-out problems (of one category, where there are several) are too few to test it on"


def held_out_text(held: Mapping[str, Any] | None) -> str:
    """Whether the kernel pairs held-out problems, and whether more than their category does it."""
    if held is None:
        return NO_HELD_OUT
    if judged(held) is None:
        return TOO_FEW
    within = held["p_within"]
    p, kind = (held["p"], "") if within is None else (within, " of one category")
    if p < LEVEL:
        return f"its kernel pairs held-out problems{kind} ({p_text(p)})"
    text = f"its kernel is not shown to pair held-out problems{kind} ({p_text(p)})"
    if within is not None and held["p"] < LEVEL:
        text += f": across categories it does ({p_text(held['p'])}), and may tell no more than these apart"
    return text


def reason(words: str) -> str:
    """What the engine said of a collapse, without its first word."""
    return words.removeprefix("Collapsed: ").rstrip(".")


def loss_title(where: str, fits: Sequence[Mapping[str, Any]]) -> str:
    """Which penalties collapsed, and how the others ended.

    Args:
        fits: penalty, collapsed, words, steps, stopped of each.
    """
    gone = [f for f in fits if f["collapsed"]]
    rest = [f for f in fits if not f["collapsed"]]
    parts = []
    if rest:
        ends = [
            f"{f['penalty']:g} ({f['steps']} steps{', plateau' if f['stopped'] == 'plateau' else ''})"
            for f in rest
        ]
        verb = "does" if len(rest) == 1 else "do"
        parts.append(f"λ = {', '.join(ends)} {verb} not collapse")
    if gone:
        which = ", ".join(f"{f['penalty']:g}" for f in gone)
        parts.append(f"λ = {which} collapsed: {reason(gone[0]['words'])}")
    return f"{where}: " + "; ".join(parts)


def spectrum_title(where: str, found: Found, fit: Mapping[str, Any], under: int, d: int) -> str:
    """What the lengthscales say; the rule is `engine.ard.spectrum.conclusion`.

    Args:
        under: dimensions that lie apart below the others (outliers), whatever threshold is drawn.
    """
    held = fit["held_out"]
    if found == "collapsed":
        return f"{where}: collapsed: {reason(fit['words'])}"
    if found == "nothing found":
        p = judged(held)
        if p is not None and not p < LEVEL:
            noise = "" if held is None or held["p"] < LEVEL else ", as a fit of noise would not"
            return f"{where}: nothing found; {held_out_text(held)}{noise}"
        return f"{where}: nothing found: all lengthscales are alike"
    if found == "not tested":
        return (
            f"{where}: {under} of {d} lengthscales stand apart, but {held_out_text(held)}: noise looks alike"
        )
    if found == "bimodal":
        return f"{where}: bimodal, {under} of {d} dimensions form a group of small lengthscales; " + (
            held_out_text(held)
        )
    return f"{where}: graded, no group of dimensions stands apart; {held_out_text(held)}"


def sorted_title(under: int, d: int, limit: float, rule: str, *, collapsed: bool = False) -> str:
    """How many dimensions lie under the threshold.

    Rule: a fit that collapsed has no threshold but one chosen by hand and the median.
    """
    if rule == "median":
        return f"{under} of {d} dimensions lie under the median, log₁₀ ℓ = {number(limit)}: {MEDIAN}"
    if limit == float("-inf") and collapsed:
        return f"No threshold: the fit collapsed, and its {d} lengthscales have no meaning"
    if limit == float("-inf"):
        if rule != "mixture":
            return f"No threshold: the {d} lengthscales have none by the rule “{RULES[rule]}”"
        return f"No threshold: one Gaussian describes the {d} lengthscales as well as two"
    return f"{under} of {d} dimensions lie under log₁₀ ℓ = {number(limit)}, {RULES[rule]}"


def layers_title(where: str, rows: Sequence[Mapping[str, Any]], rule: str) -> str:
    """At which blocks something was found at the selected λ.

    Rule: the conclusion of each block, its held-out p Holm-adjusted over the blocks; none where problems are
    too few for any p below 0.05 after that.

    Args:
        rows: layer, found (conclusion), under (dimensions under the threshold) of the selected λ.
    """
    if not rows:
        return f"{where}: no block has been fitted at this λ"
    alive = [r for r in rows if r["found"] in ("bimodal", "graded")]
    gone = [r["layer"] for r in rows if r["found"] == "collapsed"]
    if alive:
        least, most = min(r["under"] for r in alive), max(r["under"] for r in alive)
        text = f"{least} to {most}" if most > least else f"{most}"
        said = f"lengthscales pair held-out problems at {blocks([r['layer'] for r in alive])}, |Z| {text}"
    elif any(r["found"] == "not tested" for r in rows):
        few = "held-out problems or their random pairings"
        said = f"nothing is tested: {few} are none, or too few for {len(rows)} blocks"
    else:
        said = "at no block is anything shown on held-out problems"
    said += f"; collapsed at {blocks(gone)}" if gone else ""
    return f"{where}: {said}" + (f" ({MEDIAN})" if rule == "median" else "")


def overlap_title(where: str, k: int, rows: Sequence[Mapping[str, Any]], start: str) -> str:
    """Whether surviving dimensions are those of Z.

    Rule: more than chance at p < 0.05, Holm-adjusted over the blocks shown: hypergeometric from a cold or
    random start. From a start by Z itself the overlap is circular, and p is the rank among fits from random
    subspaces of how much of its own start each keeps; without them nothing is concluded, nor from so few that
    no rank reaches p < 0.05 after Holm.

    Args:
        rows: layer, survivors, p_adjusted (None: not tested), starts (random ones) of each block with
            survivors.
    """
    if not rows:
        return f"{where}: no surviving dimensions to compare with Z"
    tested = [r for r in rows if r["p_adjusted"] is not None]
    if start == "svd" and not tested:
        return (
            f"{where}: started from Z, so that its overlap with Z proves nothing; compare with a cold start, "
            "or run the random starts as its null"
        )
    found = [r["layer"] for r in tested if r["p_adjusted"] < LEVEL]
    if start == "svd":
        return f"{where}: {_kept(k, tested, found)}"
    if found:
        return (
            f"{where}: survivors are dimensions of Z (k = {k}) more often than by chance at {blocks(found)}"
        )
    return f"{where}: survivors are not shown to be dimensions of Z (k = {k}) more often than by chance"


def _kept(k: int, tested: Sequence[Mapping[str, Any]], found: Sequence[int]) -> str:
    """Whether fits started from Z keep more of it than fits from random subspaces keep of theirs."""
    if found:
        return f"a start from Z (k = {k}) keeps more of itself than random starts do at {blocks(found)}"
    starts, needed = min(int(r["starts"]) for r in tested), math.floor(len(tested) / LEVEL)
    if starts < needed:
        return f"{starts} random starts are too few to tell what a start from Z keeps: {needed} are needed"
    return f"a start from Z (k = {k}) is not shown to keep more of itself than random starts do"
