"""How small a p permutations can give: a test that can't reach its level says nothing by failing to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from engine.errors import AnalysisError

Groups = Sequence[object] | np.ndarray


def smallest_p(draws: int, n: int, groups: Groups | None = None) -> float:
    """The smallest p = (1 + #{draws as large})/(1 + draws) to expect: max(1/(1 + draws), 1/Π n_g!).

    The true order is among the random ones once in Π n_g! draws.

    Args:
        draws: random orders. n: members. groups: (n,) label of each, where they are dealt within groups only.
    """
    sizes = [n] if groups is None else np.unique(np.asarray(groups), return_counts=True)[1].tolist()
    return max(1 / (1 + draws), 1 / math.prod(math.factorial(size) for size in sizes))


def random_orders(n: int, groups: Groups | None, draws: int, seed: int) -> Int[np.ndarray, "draws n"]:
    """Random orders of n members, within groups where there are any, (draws, n).

    Raises:
        AnalysisError: not one label for each.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        return np.array([rng.permutation(n) for _ in range(draws)], dtype=np.intp).reshape(draws, n)
    labels = np.asarray(groups)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if labels.shape != (n,):
        raise AnalysisError(
            "Pairs can't be permuted within these groups.",
            expected=f"a group for each of {n} problems",
            given=f"{labels.shape[0]} labels",
        )
    orders = np.tile(np.arange(n), (draws, 1))
    for order in orders:
        for own in members:
            order[own] = rng.permutation(own)
    return orders
