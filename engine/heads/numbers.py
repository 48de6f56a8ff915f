"""Which attention heads carry the effect of a patch, from per-prompt KLs of subsets of heads.

With KL_S(p) the divergence at prompt p when the heads of S are substituted and KL_ALL when all are,

    coverage(S) = 100 · Σ_p KL_S(p) / Σ_p KL_ALL(p)   percent,

a ratio of means over the same prompts. KL is not additive over heads: coverages need not sum to 100, and one
of them may exceed it. Whatever is chosen by looking (a ranking, a greedy set) is chosen on the train split
and reported on validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from jaxtyping import Float
from scipy import stats

from engine.errors import AnalysisError
from engine.stats.means import bootstrap_mean, bootstrap_ratios, exceed
from engine.stats.uncertainty import Band, Groups, Interval

Heads = frozenset[int]
"""A subset of a layer's heads."""

SMALLEST_EFFECT = 1e-5
"""Nats: a KL_ALL below this is not divided by, whatever the rounding."""
FLOORS = 10.0
"""KL_ALL must be this many times the self-patch floor."""
CARRIED = 95.0
"""Percent of KL_ALL that a set must cover on the train split to be said to carry the effect."""
FEWEST_HEADS = 5
"""With four heads the smallest two-sided permutation p of a rank correlation is 2/4! > 0.05."""


@dataclass(frozen=True)
class Effect:
    """KL_ALL, and whether it may be divided by.

    Attributes:
        interval: mean KL_ALL over prompts, nats. floor: largest |KL| of the model's own activation put back,
            or the model's measured rounding noise where that is larger.
        threshold: max(10 · floor, 1e-5). reason: why not, in words; empty where it may.
    """

    interval: Interval
    floor: float
    threshold: float
    reason: str

    @property
    def shown(self) -> bool:
        """Whether coverages of this effect mean anything."""
        return not self.reason


def effect(
    kl_all: Float[np.ndarray, " n"],
    floor: float,
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Effect:
    """Measures KL_ALL and decides whether it can be covered.

    Rule: the mean exceeds max(10 · floor, 1e-5) nats and is shown to exceed the
    floor, by its interval or by `engine.stats.means.exceed`.
    """
    found = bootstrap_mean(kl_all, groups=groups, n_boot=n_boot, level=level, seed=seed)
    threshold = max(FLOORS * floor, SMALLEST_EFFECT)
    reason = ""
    if not found.estimate > threshold:
        reason = (
            f"substituting all heads moves the next token by {found.estimate:.2g} nats, "
            f"not above {threshold:.1e} (10 times rounding, at least 1e-5): there is nothing to cover"
        )
    elif not (found.low > floor or bool(exceed(kl_all, floor, groups=groups, level=level))):
        reason = (
            f"the interval of the whole effect ({found.low:.2g} to {found.high:.2g} nats) reaches rounding "
            f"({floor:.2g}): there may be nothing to cover"
        )
    return Effect(found, floor, threshold, reason)


def coverages(
    kl: Float[np.ndarray, "subsets n"],
    kl_all: Float[np.ndarray, " n"],
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    together: bool = False,
) -> Band:
    """Coverage of many subsets in percent, with paired studentised intervals over prompts (or groups).

    Linear in `kl`: with KL_pair − KL_i − KL_j it gives the interaction of two heads in percent of KL_ALL.

    Args:
        together: the intervals hold for all subsets at once (max-t, `engine.stats.means.bootstrap_ratios`).

    Raises:
        AnalysisError: the shapes differ, values are not finite, or KL_ALL sums to 0.
    """
    parts, whole = np.asarray(kl, dtype=np.float64), np.asarray(kl_all, dtype=np.float64)
    if parts.ndim != 2 or whole.shape != parts.shape[1:]:
        raise AnalysisError(
            "Coverage needs the same prompts for the subsets and for all heads.",
            expected="arrays (subsets, n) and (n,)",
            given=f"shapes {parts.shape} and {whole.shape}",
        )
    if not (np.isfinite(parts).all() and np.isfinite(whole).all()) or whole.sum() == 0:
        raise AnalysisError(
            "Coverage is undefined here.",
            expected="finite KLs, and a KL of all heads other than 0",
            given=f"a total of {whole.sum():g} nats",
            next_step="show why there is nothing to cover instead.",
        )
    return bootstrap_ratios(
        100 * parts, whole, groups=groups, n_boot=n_boot, level=level, seed=seed, together=together
    )


def ranking(singles: Float[np.ndarray, "heads n"]) -> list[int]:
    """Heads by the mean KL of each alone, largest first; equal ones by their number."""
    return np.argsort(-np.asarray(singles).mean(axis=1), kind="stable").tolist()


def greedy(n_heads: int, most: int, score: Callable[[Sequence[Heads]], Sequence[float]]) -> list[int]:
    """Heads in the order in which each adds most to the set of those before it.

    Args:
        most: how many to choose. score: a number for each subset, asked once per step with all candidates.
    """
    chosen: list[int] = []
    while len(chosen) < min(most, n_heads):
        left = [head for head in range(n_heads) if head not in chosen]
        scores = score([Heads((*chosen, head)) for head in left])
        chosen.append(left[int(np.argmax(np.asarray(scores)))])
    return chosen


def random_subsets(n_heads: int, k: int, draws: int, seed: int) -> list[Heads]:
    """`draws` different k-subsets drawn uniformly; all of them where there are no more than that."""
    if math.comb(n_heads, k) <= draws:
        return [Heads(c) for c in combinations(range(n_heads), k)]
    rng = np.random.default_rng([seed, k])
    found: dict[Heads, None] = {}
    while len(found) < draws:
        found[Heads(rng.choice(n_heads, k, replace=False).tolist())] = None
    return list(found)


def over_draws(values: Float[np.ndarray, " draws"], level: float = 0.95) -> Interval:
    """Mean over random subsets with the percentile range of the subsets themselves."""
    found = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        float(found.mean()), float(low), float(high), level, f"range of {found.size} random subsets"
    )


def carrying(train: Sequence[float]) -> int | None:
    """The smallest number of greedily chosen heads that covers 95 % on the train split, or None.

    Args:
        train: coverage of the first 1, 2, … greedy heads there, percent.
    """
    return next((k for k, covered in enumerate(train, 1) if covered >= CARRIED), None)


def is_localised(k: int, n_heads: int, carried: Interval, random_mean: float) -> bool:
    """Whether an effect is localised in k heads.

    Rule: k is at most a quarter of the heads, and the lower end of their coverage on validation is at least
    50 % and at least twice what random sets of k heads cover on average.
    """
    return 4 * k <= n_heads and carried.low >= max(50.0, 2 * random_mean)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ over heads with a two-sided permutation p-value.

    Attributes:
        rho, p: None where undefined. n: heads. reason: why undefined, else empty.
    """

    rho: float | None
    p: float | None
    n: int
    reason: str = ""


def rank_correlation(
    predicted: Float[np.ndarray, " heads"],
    measured: Float[np.ndarray, " heads"],
    *,
    n_permutations: int = 9999,
    seed: int = 0,
) -> RankCorrelation:
    """Rank correlation of a cheap predictor with what was measured, over heads.

    All orders are tried up to 7 heads; else p = (1 + #{|ρ_perm| ≥ |ρ|}) / (1 + n_permutations) (Phipson &
    Smyth 2010). Fewer than 5 heads can't reach p < 0.05 and give none.
    """
    x, y = (stats.rankdata(np.asarray(v, dtype=np.float64)) for v in (predicted, measured))
    n = x.size
    if n < FEWEST_HEADS:
        return RankCorrelation(None, None, n, f"{n} heads are too few for a rank correlation")
    x, y = x - x.mean(), y - y.mean()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    if length == 0:
        return RankCorrelation(None, None, n, "one side is the same for every head")
    if math.factorial(n) <= n_permutations:
        orders, extra = np.array(list(permutations(range(n)))), 0
    else:
        rng = np.random.default_rng(seed)
        orders, extra = rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1), 1
    rho = float(x @ y) / length
    found = y[orders] @ x / length
    # Equal correlations differ by rounding of their sums.
    p = (extra + int((np.abs(found) >= abs(rho) - 1e-12).sum())) / (extra + len(orders))
    return RankCorrelation(rho, p, n)
