"""Random samples of prompts: what stands in for all of them where work or bytes grow with n².

A sample holds whole groups (pairs), and of every stratum (split, language, category) its share: groups of a
stratum stand in random order at even distances between 0 and 1, and the sample is what lies below one
threshold. A group is then as likely to be in it as any other, a smaller sample is part of a larger one, and
no stratum is off its share by more than one group.

An interval over the sample's prompts covers what sampling adds: the sample of a random set of prompts is a
smaller random set from the same source.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

MOST = 1000
"""Prompts that similarity looks at unless a study says otherwise: at 1000, one layer's estimates, 1000
resamples and 199 wrong pairings take 0.1 s of one core, and the Grams of 33 states 132 MB."""
WHOLE = 10
"""Groups of up to so many rows are never cut."""


def sample_rows(
    groups: NDArray[np.generic],
    strata: NDArray[np.generic] | None = None,
    most: int = MOST,
    seed: int = 0,
) -> Int[np.ndarray, " m"]:
    """Rows of a random sample of whole groups, ascending; all rows where there are no more than `most`.

    Args:
        groups: (n,) label of each row's group; a row that has none needs a label of its own.
        strata: (n,) label of each row's stratum; a group belongs to the set of its members' strata.
        most: at most so many rows. Groups of over max(WHOLE, most/#groups) rows give that many at random.
        seed: of the draw.
    """
    n = len(groups)
    if n <= most:
        return np.arange(n)
    rng = np.random.default_rng(seed)
    group = np.unique(groups, return_inverse=True)[1].reshape(-1)
    label = np.zeros(n, np.intp) if strata is None else np.unique(strata, return_inverse=True)[1].reshape(-1)
    cap = max(WHOLE, most // (group.max() + 1))
    inside = _spread(group * (label.max() + 1) + label, rng)
    rank = np.empty(n, np.intp)
    order = np.lexsort((inside, group))
    rank[order] = np.arange(n) - np.searchsorted(group[order], group[order])
    kept = np.flatnonzero(rank < cap)

    members: list[set[int]] = [set() for _ in range(group.max() + 1)]
    for one, of in zip(group.tolist(), label.tolist(), strict=True):
        members[one].add(of)
    number: dict[frozenset[int], int] = {}
    kinds = np.array([number.setdefault(frozenset(m), len(number)) for m in members])
    turn = np.argsort(_spread(kinds, rng), kind="stable")
    sizes = np.bincount(group[kept], minlength=turn.size)[turn]
    chosen = turn[np.cumsum(sizes) <= most]
    return kept[np.isin(group[kept], chosen)]


def _spread(label: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """A place in (0, 1) for each entry: entries of one label in random order, at even distances."""
    order = np.lexsort((rng.random(label.size), label))
    _, first, count = np.unique(label[order], return_index=True, return_counts=True)
    start = rng.random(first.size)
    place = np.empty(label.size)
    place[order] = (np.arange(label.size) - np.repeat(first - start, count)) / np.repeat(count, count)
    return place
