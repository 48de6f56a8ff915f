"""Values by part (category): means with intervals, and which parts have more than all others together.

For every part c of at least `FEWEST_UNITS` units, Welch's t of its units against all other units,

    t_c = (m_c − m_rest) / √(s²_c / n_c + s²_rest / n_rest),

is held against the largest t over all parts when values are dealt to units anew (permutation; max-t: Westfall
& Young 1993), so that p holds for all parts at once. Welch's t brings it nearer to its level where parts have
one mean but unlike spreads (Janssen 1997); `larger` asks for intervals apart as well, for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from engine.stats.means import bootstrap_mean, exceed
from engine.stats.uncertainty import Groups, Interval

__all__ = ["FEWEST_UNITS", "Part", "by_part", "larger"]

FEWEST_UNITS = 4
"""Units (prompts, or pairs) of a part, and of all others, below which a part isn't judged."""
CHUNK = 2**22


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        key: its name. interval: mean over its prompts. n, units: its prompts, and pairs or prompts.
        rest: the same of all other parts together.
        p: that its mean is as much larger than theirs by chance, for all parts at once; NaN where it has too
            few units, or is the only one.
        above: its mean is shown to lie above the others' interval, whatever the spreads and the skew.
    """

    key: str
    interval: Interval
    n: int
    units: int
    rest: Interval
    p: float
    above: bool


def by_part(
    values: Float[np.ndarray, " n"],
    keys: Sequence[str | None],
    groups: Groups = None,
    *,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 4999,
    floor: float = 0.0,
) -> list[Part]:
    """Means of the parts that `keys` name, in order of appearance; prompts without a key are left out.

    Args:
        values: (n,), finite, none below 0. groups: unit of each prompt; of a unit in two parts each counts.
        floor: what a difference must exceed to be more than rounding.
    """
    known = np.array([key is not None for key in keys], dtype=bool)
    x = np.asarray(values, dtype=np.float64)[known]
    names = [key for key in keys if key is not None]
    labels = np.arange(x.size) if groups is None else np.asarray(groups)[known]
    order = list(dict.fromkeys(names))
    part = np.array([order.index(name) for name in names], dtype=np.int64)
    _, unit = np.unique(np.stack([labels.astype(np.int64), part]), axis=1, return_inverse=True)
    unit = unit.ravel()
    size = np.bincount(unit)
    means = np.bincount(unit, weights=x) / size
    member = np.zeros((size.size, len(order)), dtype=bool)
    member[unit, part] = True
    p = _largest_t(means, member, seed, draws)
    found = []
    for at, name in enumerate(order):
        own = part == at
        units = int(member[:, at].sum())
        sides = (_mean(x[some], labels[some], n_boot, level, seed) for some in (own, ~own))
        mean, rest = sides
        least = rest.high + floor
        above = mean.low > least or (
            least > 0 and bool(exceed(x[own], least, groups=labels[own], level=level))
        )
        found.append(Part(name, mean, int(own.sum()), units, rest, float(p[at]), above))
    return found


def _mean(x: Float[np.ndarray, " n"], labels: np.ndarray, n_boot: int, level: float, seed: int) -> Interval:
    if np.unique(labels).size < 2:
        value = float(x.mean()) if x.size else float("nan")
        return Interval(value, float("nan"), float("nan"), level, "none: a single unit")
    return bootstrap_mean(x, groups=labels, n_boot=n_boot, level=level, seed=seed)


def larger(parts: Sequence[Part]) -> list[Part]:
    """Parts whose mean is shown to be larger than that of all others together, the largest first.

    Rule: p below 0.05 for all parts at once, and `above`: the part's interval lies above that of the others,
    or its values, which can't be negative, exceed the upper end of it (`engine.stats.means.exceed`).
    """
    told = [one for one in parts if one.p < 0.05 and one.above]
    return sorted(told, key=lambda one: -one.interval.estimate)


def _largest_t(
    values: Float[np.ndarray, " u"], member: Bool[np.ndarray, "u c"], seed: int, draws: int
) -> Float[np.ndarray, " c"]:
    """p of each part's t under the law of the largest; NaN where a side has too few units."""
    counts = member.sum(axis=0)
    judged = (counts >= FEWEST_UNITS) & (values.size - counts >= FEWEST_UNITS)
    p = np.full(counts.size, np.nan)
    if not judged.any():
        return p
    some = member[:, judged].astype(np.float64)
    own = _welch(values[None], some)[0]
    rng, above = np.random.default_rng(seed), np.ones(own.size)
    step = max(1, CHUNK // values.size)
    for start in range(0, draws, step):
        dealt = rng.permuted(np.tile(values, (min(step, draws - start), 1)), axis=1)
        above += (_welch(dealt, some).max(axis=1)[:, None] >= own[None] - 1e-12).sum(axis=0)
    p[judged] = above / (draws + 1)
    return p


def _welch(values: Float[np.ndarray, "b u"], member: Float[np.ndarray, "u c"]) -> Float[np.ndarray, "b c"]:
    """t of each part against the rest; without any spread 0, or infinite where the means differ."""
    centred = values - values.mean(axis=1, keepdims=True)
    n, total = member.sum(axis=0), values.shape[1]
    first, second = centred @ member, centred**2 @ member
    every = (centred**2).sum(axis=1, keepdims=True)
    m, rest = first / n, -first / (total - n)
    v = np.maximum(second - n * m**2, 0.0) / (n - 1) / n
    w = np.maximum(every - second - (total - n) * rest**2, 0.0) / (total - n - 1) / (total - n)
    apart, spread = m - rest, np.sqrt(v + w)
    tiny = 1e-7 * np.sqrt(every)  # squares cancel
    small = spread <= tiny
    free = np.where(apart > tiny, np.inf, np.where(apart < -tiny, -np.inf, 0.0))
    return np.where(small, free, apart / np.where(small, 1.0, spread))
