"""Numbers of a patch map: which tokens stand for each other, recovery, and the largest cells of the null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["LEAST_KL", "Largest", "aligned", "apart", "largest", "nearest", "other_answer", "recovery"]

LEAST_GAP = 1e-3
"""Nats: a smaller difference between two runs' logit differences divides nothing."""
LEAST_KL = 1e-3
"""Nats: runs that are no further apart say the same, and have no answers of their own."""


def aligned(
    receiving: int, donor: int, last: int
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
    """Tokens of two prompts that stand for each other: the last ones, as many as both have, at most `last`.

    Returns:
        indices in the receiving prompt, and in the donor's, of the same length, ascending.
    """
    count = min(receiving, donor, last)
    return np.arange(receiving - count, receiving), np.arange(donor - count, donor)


def nearest(
    lengths: Int[np.ndarray, " n"], own: int, patched: int, count: int, seed: int
) -> Int[np.ndarray, " m"]:
    """Prompts that have the patched tokens, of lengths near a given one; then the longest of the others.

    Args:
        lengths: of every prompt that may be drawn. own: the donor's.
        patched: tokens that are patched; a prompt of less than half as many is left out.
        count: how many. seed: of the draw among prompts of one length.

    Returns:
        at most `count` indices, ascending.
    """
    drawn = np.random.default_rng(seed).permutation(len(lengths))
    usable = drawn[2 * lengths[drawn] >= patched]
    size = lengths[usable]
    order = np.lexsort((np.abs(size - own), np.maximum(patched - size, 0)))
    found: Int[np.ndarray, " m"] = np.sort(usable[order[:count]])
    return found


def other_answer(receiving: Float[np.ndarray, " v"], donor: Float[np.ndarray, " v"]) -> tuple[int, int]:
    """The likeliest next token of the receiving run, and the donor's.

    Where they are one token, the second is the other one whose probability differs most between the runs.

    Args:
        receiving, donor: log-probabilities of the next token.
    """
    first, second = int(np.argmax(receiving)), int(np.argmax(donor))
    if first != second:
        return first, second
    moved = np.abs(np.exp(donor) - np.exp(receiving))
    moved[first] = -1.0
    return first, int(np.argmax(moved))


def apart(receiving: Float[np.ndarray, " v"], donor: Float[np.ndarray, " v"]) -> float:
    """KL(donor || receiving) of two next-token distributions, nats, from their log-probabilities."""
    return float(np.sum(np.exp(donor) * (donor - receiving)))


def recovery(
    patched: Float[np.ndarray, "..."], receiving: float, donor: float, noise: float
) -> Float[np.ndarray, "..."]:
    """(patched − receiving) ÷ (donor − receiving): 0 where a patch does nothing, 1 where it does everything.

    NaN everywhere where the two runs are no further apart than `LEAST_GAP` and √2 times `noise`: their
    distance is a difference of two logit differences.

    Args:
        patched, receiving, donor: logit differences. noise: what rounding does to one of them, nats.
    """
    gap = donor - receiving
    if abs(gap) <= max(LEAST_GAP, np.sqrt(2.0) * noise):
        return np.full(np.shape(patched), np.nan)
    found: Float[np.ndarray, "..."] = (np.asarray(patched, dtype=np.float64) - receiving) / gap
    return found + 0.0  # no −0


class Largest(NamedTuple):
    """The largest cell among some tokens: its block and column, and what it holds."""

    layer: int
    column: int
    value: float


def largest(values: Float[np.ndarray, "layers tokens"], columns: Sequence[int]) -> Largest | None:
    """The largest of some columns; None without any, or where nothing is defined there."""
    part = np.asarray(values, dtype=np.float64)[:, list(columns)]
    known: Bool[np.ndarray, "layers some"] = np.isfinite(part)
    if not known.any():
        return None
    layer, column = np.unravel_index(int(np.argmax(np.where(known, part, -np.inf))), part.shape)
    return Largest(int(layer), int(columns[int(column)]), float(part[layer, column]))
