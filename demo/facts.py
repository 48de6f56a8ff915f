"""Arithmetic facts and the split of them into training and held-out families.

A family is an unordered pair of addends with its sum, `{a, b, a + b}`. It is kept or held out as a
whole, in both languages and for both operations: whoever has seen 17 + 7 = 24 has as good as seen
24 - 7 = 17. Products are too few to hold out, so they are held out by wording (see `corpus`).
"""

from __future__ import annotations

import random
from functools import lru_cache

SMALLEST, LARGEST = 2, 49
"""Range of the addends, both ends included."""

TABLE = tuple((x, y) for x in range(2, 10) for y in range(2, 10))
"""Factors of the times tables that occur in products and divisions."""

HELD_OUT_SHARE = 0.15
SPLIT_SEED = 20240607

Family = tuple[int, int]


@lru_cache(maxsize=1)
def families() -> tuple[tuple[Family, ...], tuple[Family, ...]]:
    """All families as (training, held out), each sorted, `a <= b`; the same whatever a run's seed."""
    every = [(a, b) for a in range(SMALLEST, LARGEST + 1) for b in range(a, LARGEST + 1)]
    random.Random(SPLIT_SEED).shuffle(every)
    cut = round(len(every) * HELD_OUT_SHARE)
    return tuple(sorted(every[cut:])), tuple(sorted(every[:cut]))


@lru_cache(maxsize=1)
def held_out() -> frozenset[Family]:
    """The held-out families as a set of `(a, b)` with `a <= b`."""
    return frozenset(families()[1])


def is_held_out(a: int, b: int) -> bool:
    """Whether a + b, b + a, (a+b) - a and (a+b) - b are kept out of training."""
    return (min(a, b), max(a, b)) in held_out()


@lru_cache(maxsize=2)
def chains(hidden: bool) -> tuple[tuple[int, int, int], ...]:
    """Triples (a, b, e) for a + b = s followed by s - e, both families on the same side of the split."""
    out = []
    for a, b in families()[1 if hidden else 0]:
        total = a + b
        for e in range(SMALLEST, min(LARGEST, total - SMALLEST) + 1):
            rest = total - e
            if SMALLEST <= rest <= LARGEST and is_held_out(e, rest) == hidden and e not in (a, b):
                out.append((a, b, e))
    return tuple(out)
