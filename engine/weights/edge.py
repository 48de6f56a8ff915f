"""From which size on a direction of a weight difference stands out of a random one."""

from __future__ import annotations

from engine.stats.spectra import squares, squares_of_product, uneven_edge
from engine.weights.deltas import WeightDelta

__all__ = ["edge"]


def edge(delta: WeightDelta) -> float | None:
    """What a random difference with the same row and column norms stays below with probability 0.99.

    See `engine.stats.spectra.uneven_edge`. None for a tensor that is no matrix or has no spectrum.
    """
    if delta.spectrum is None:
        return None
    if delta.left is None or delta.right is None:
        return uneven_edge(*squares(delta.matrix()))
    return uneven_edge(*squares_of_product(delta.left, delta.right))
