"""Sentences about Z's geometry: each has its rule written down and says no more than its null allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.frame.words import blocks, number, span
from engine.geometry.language_energy import LanguageEnergy
from engine.geometry.layers import LayerStructure
from engine.geometry.separation import ALPHA, Separation
from engine.stats.uncertainty import holm

TAIL = ALPHA / 2
FEWEST_BLOCKS = 5
"""Four have 4!/2 = 12 orders that differ by more than their direction: no p below 1/12."""


def p_text(p: float) -> str:
    """'p = 0.012', or 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3g}"


def ranks_title(model: str, ranks: np.ndarray, variation: np.ndarray, random: np.ndarray, d_h: int) -> str:
    """How many directions heads use, and how many heads fall below what random weights use.

    Rule: below means under the 2.5 % quantile of random weights of the same size; by chance 2.5 % of heads.

    Args:
        ranks: of every head. variation: of its block's heads. random: (draws,).
    """
    below = int((ranks < np.quantile(random, TAIL)).sum())
    chance = number(TAIL * ranks.size, 1)
    return (
        f"{model}: heads read {number(ranks.min(), 1)} to {number(ranks.max(), 1)} of {d_h} directions, "
        f"{below} of {ranks.size} heads fewer than random weights do ({chance} by chance); "
        f"within a block they vary by up to {100 * np.nanmax(variation):.0f} %"
    )


def structure_title(model: str, found: LayerStructure) -> str:
    """Whether neighbouring blocks read more alike subspaces than distant ones.

    Rule: said only when fewer than 5 % of random orders of the blocks have so large a difference; up to four
    blocks have too few orders for that. The
    weights are given, so similarities have no sampling error and the largest drop from one pair of neighbours
    to the next, and the least similarity, can be named.
    """
    text = f"{model}: neighbouring blocks "
    if found.blocks < FEWEST_BLOCKS:
        text = (
            f"{model}: {found.blocks} blocks are too few to tell whether neighbours read more alike subspaces"
        )
    elif found.p_gap < ALPHA and found.gap > 0:
        text += (
            f"read more alike subspaces than distant ones, by {number(found.gap, 3)} ({p_text(found.p_gap)})"
        )
    else:
        text += f"are not shown to read more alike subspaces than distant ones ({p_text(found.p_gap)})"
    if found.drop > 0:
        text += f"; sharpest drop: from block {found.boundary} to {found.boundary + 1}"
        text += f", by {number(found.drop, 3)}"
    text += f"; least alike neighbours: {found.least} and {found.least + 1} ({number(found.at_least, 3)})"
    if found.unrelated:
        first = ", ".join(f"{i} and {i + 1}" for i in found.unrelated[:4])
        text += f"; not shown to be more alike than random subspaces: {first}"
        text += " …" if len(found.unrelated) > 4 else ""
    return text


def convergence_title(model: str, ref: int, values: np.ndarray, p: np.ndarray) -> str:
    """Which blocks read what the reference block reads.

    Rule: blocks whose similarity is beyond random subspaces (one-sided, Holm over the other blocks), and
    beyond those that keep the coordinates' shares: `p` is the larger of both.
    """
    others = [i for i in range(len(values)) if i != ref]
    if not others:
        return f"{model} has one block only"
    adjusted = holm(np.asarray(p)[others])
    found = [i for i, q in zip(others, adjusted, strict=True) if q < ALPHA]
    if not found:
        return f"{model}: no block's Z is shown to be more like block {ref}'s than a random subspace is"
    top = max(found, key=lambda i: values[i])
    many = "every other block" if len(found) == len(others) else blocks(found)
    verb = "resembles" if len(found) == 1 or many.startswith("every") else "resemble"
    text = f"{model}: Z of {many} {verb} block {ref}'s beyond chance"
    return text + (f", block {top}'s most" if len(found) > 1 else "") + f" ({number(float(values[top]), 3)})"


UNIFORM = "uniformly random subspaces"


def gates_title(model: str, ratio: np.ndarray, p: np.ndarray, p_low: np.ndarray) -> str:
    """Whether the MLPs' gates read Z more or less than a uniformly random subspace.

    Rule: one-sided p below 2.5 % on either side, Holm over blocks. Stores keep no scales of single
    coordinates of gates, so that the title says of which subspaces alone it speaks.
    """
    high, low = holm(p) < TAIL, holm(p_low) < TAIL
    parts = []
    if high.any():
        parts.append(f"more than {UNIFORM} in {blocks(np.flatnonzero(high).tolist())}")
    if low.any():
        parts.append(f"less{'' if parts else f' than {UNIFORM}'} in {blocks(np.flatnonzero(low).tolist())}")
    ends = f"{number(float(np.nanmin(ratio)))} to {number(float(np.nanmax(ratio)))} of chance"
    said = " and ".join(parts) or f"nowhere shown to differ from {UNIFORM}"
    return f"{model}: gates read what the same block's keys read {said}; {ends}"


def separation_title(where: str, found: Separation, k: int) -> str:
    """Whether Z separates at the selected k.

    Rule: "Z separates" when ratio(Z) < ratio(Z⊥) and fewer than 5 % of random k-subspaces have as small a
    ratio, and fewer than 5 % of those that keep Z's share of every coordinate. When only the inequality
    holds, the share that does as well is told. That a wrong pairing of problems does as well is added when it
    does.
    """
    at = found.ks.index(k)
    inside, outside = (float(b.estimate[at]) for b in (found.inside, found.outside))
    low, high = float(found.inside.low[at]), float(found.inside.high[at])
    p, pairing = float(found.p_random[at]), float(found.p_pairing[at])
    kept = float(found.p_scales[at])
    told = f"ratio {number(inside)}{span(low, high)} in Z, {number(outside)} outside"
    if not np.isfinite(inside):
        return f"{where}: separation is undefined, all problems coincide inside Z"
    if kept < ALPHA:
        chance = f"; but pairing is not told from chance ({p_text(pairing)})" if pairing >= ALPHA else ""
        return f"{where}: Z separates: {told}; {p_text(max(p, kept))} against random subspaces{chance}"
    if np.isfinite(kept):
        text = (
            f"{where}: Z is not shown to separate, {100 * kept:.0f} % of subspaces with the same "
            "share of every coordinate do as well"
        )
    elif inside < outside:
        text = f"{where}: Z is not shown to separate, {100 * p:.0f} % of random subspaces do as well"
    else:
        text = f"{where}: Z is not shown to separate"
    chance = f"; nor is pairing told from chance ({p_text(pairing)})" if pairing >= ALPHA else ""
    return f"{text}{chance}; {told}"


def energy_title(where: str, found: LanguageEnergy, k: int, names: tuple[str, str]) -> str:
    """Whether the language shift lies in Z more or less than in a random subspace, at the selected k.

    Rule: one-sided p below 2.5 % on either side, against uniformly random subspaces and against those that
    keep Z's share of every coordinate.
    """
    at = found.ks.index(k)
    value = f"{number(float(found.ratio.estimate[at]))}"
    value += span(float(found.ratio.low[at]), float(found.ratio.high[at])) + " times k/d"
    between = f"the {names[0]} to {names[1]} shift"
    p, p_low = float(found.more[at]), float(found.less[at])
    if p < TAIL:
        return f"{where}: Z holds more of {between} than random subspaces ({p_text(p)}); {value}"
    if p_low < TAIL:
        return f"{where}: Z holds less of {between} than random subspaces ({p_text(p_low)}); {value}"
    return f"{where}: Z is not shown to hold more or less of {between} than chance; {value}"


def heads_title(where: str, p: np.ndarray, multi: float, k: int) -> str:
    """How many heads' own subspaces have a smaller ratio than 95 % of random ones.

    Rule: a count against its expectation by chance; single heads are not named, because as many tests would
    need far more random draws.

    Args:
        p: (head,) one-sided rank p. multi: ratio of the Z of all heads.
    """
    found = int((p < ALPHA).sum())
    return (
        f"{where}: {found} of {p.size} heads have a smaller ratio than 95 % of random {k}-subspaces; "
        f"{number(ALPHA * p.size, 1)} would by chance; all heads together {number(multi)}"
    )


def every_title(where: str, said: Sequence[int], of: int, k: int) -> str:
    """In how many blocks Z separates, next to the count by chance.

    Args:
        said: blocks at which the rule of `separation_title` holds. of: blocks measured.
    """
    chance = f"up to {number(ALPHA * of, 1)} by chance"
    if not said:
        return f"{where}: Z is shown to separate in no block at k = {k}"
    return f"{where}: Z separates in {len(said)} of {of} blocks at k = {k} ({chance}): {blocks(said)}"


def energy_every_title(
    where: str, found: np.ndarray, p: np.ndarray, p_low: np.ndarray, layers: Sequence[int]
) -> str:
    """In which blocks Z holds more, or less, of the language shift than random subspaces.

    Rule: one-sided p below 2.5 % on either side, Holm over blocks.

    Args:
        p, p_low: of each block, the larger p of both nulls (`LanguageEnergy.more` and `less`).
    """
    named = [
        f"{word} in {blocks([layers[int(i)] for i in np.flatnonzero(holm(q) < TAIL)])}"
        for word, q in (("more", p), ("less", p_low))
        if (holm(q) < TAIL).any()
    ]
    ends = f"{number(float(found.min()))} to {number(float(found.max()))} times k/d"
    if not named:
        return (
            f"{where}: in no block Z is shown to hold more or less of the language shift than chance ({ends})"
        )
    return f"{where}: of the language shift, Z holds {' and '.join(named)} than random subspaces do ({ends})"
