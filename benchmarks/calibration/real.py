"""Nulls made of a real model's numbers (`benchmarks.calibration.streams`): nothing in them is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.entry import Make
from benchmarks.calibration.streams import streams

Array = NDArray[np.float64]
Rng = np.random.Generator

HALVES = "halves of SmolLM2's prompts, paired at random"
SHAPES = "SmolLM2 in two batch shapes"
EFFECTS = "patches of SmolLM2, their effect made zero on average"
SHUFFLED = "patches of SmolLM2, pairs of prompts dealt to categories"
PAIRED = "SmolLM2's prompts of one template, paired at random"
LEADING = 12
"""Principal directions that stand for a stream of 576 dimensions where a map is fitted to few rows."""


class Halves(NamedTuple):
    """Rows (states, n, d) of disjoint halves of the prompts, and the category of each row of either."""

    one: Array
    two: Array
    categories: tuple[NDArray[np.intp], NDArray[np.intp]]


def halves(rng: Rng, n: int, width: int = LEADING) -> Halves:
    """Two disjoint random sets of n prompts, in leading principal directions of all states but the first.

    Pairs of prompts stand on one side: no row of the first half belongs to one of the second.
    """
    held = streams()
    side = rng.permutation(np.unique(held.group))
    first = np.isin(held.group, side[: len(side) // 2])
    drawn = [rng.choice(np.flatnonzero(part), n, replace=False) for part in (first, ~first)]
    centred = held.one[1:] - held.one[1:].mean(axis=1, keepdims=True)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:, :width]
    rows = centred @ np.swapaxes(axes, 1, 2)
    return Halves(rows[:, drawn[0]], rows[:, drawn[1]], (held.category[drawn[0]], held.category[drawn[1]]))


def repaired(rng: Rng, n: int = 14, width: int = 32) -> tuple[Array, Array]:
    """n prompts of one category and n others of it, (states, n, width) each: no two belong together.

    In `width` coordinates of the stream, the largest among them.
    """
    held = streams()
    rows = rng.permutation(np.flatnonzero(held.category == rng.choice(held.category)))[: 2 * n]
    sd = held.one[1:].std(axis=1).mean(axis=0)
    at = np.append(rng.choice(np.argsort(sd)[:-1], width - 1, replace=False), sd.argmax())
    found = held.one[1:, :, at][:, rows]
    return found[:, :n], found[:, n:]


@dataclass(frozen=True)
class Copies:
    """One model in two batch shapes, as `benchmarks.calibration.rounding.Pair` has simulated ones.

    Attributes:
        own, source: (states, n, d). rounding: the noise that precompute measures, on six other prompts.
    """

    own: Array
    source: Array
    rounding: dict[str, Any]


def copies(n: int = 48) -> Make:
    """n prompts of the model in either batch shape, and the noise of six further ones."""

    def make(rng: Rng) -> Copies:
        held = streams()
        order = rng.permutation(held.one.shape[1])
        measured, shown = order[:6], order[6 : 6 + n]
        one, other = held.one[:, measured], held.other[:, measured]
        apart = np.linalg.norm(one - other, axis=2) / np.linalg.norm(one, axis=2)
        rounding = {"tuned": {"sites": apart.max(axis=1).tolist()}}
        return Copies(held.one[:, shown], held.other[:, shown], rounding)

    return make


def effects(rng: Rng, n: int) -> tuple[Array, Array]:
    """KL of n prompts moment-matched, and of the same mapped, whose mean difference is 0 in the population.

    Units are pairs of prompts, drawn with replacement from the real ones; differences keep their skew.
    """
    held = streams()
    at, units = rng.integers(len(held.raw)), np.unique(held.group)
    both = [np.array([kl[at, held.group == unit].mean() for unit in units]) for kl in (held.raw, held.mapped)]
    change = both[1] - both[0]
    drawn = rng.integers(len(units), size=n)
    return both[0][drawn], both[0][drawn] + (change - change.mean())[drawn]


def dealt(rng: Rng) -> tuple[Array, list[str], NDArray[np.intp]]:
    """KL of every prompt of a patch, a category that says nothing about it, and its pair."""
    held = streams()
    units, index = np.unique(held.group, return_inverse=True)
    category = rng.permutation(np.array([held.category[held.group == unit][0] for unit in units]))
    values = held.raw[rng.integers(len(held.raw))]
    return values, [f"c{number}" for number in category[index]], held.group
