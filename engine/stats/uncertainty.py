"""Intervals, multiplicity and tests shared by all analyses.

The resampling unit is the prompt, or the group of prompts given by `groups` (the pair_id where prompts
come in pairs): whole groups are drawn, so prompts of one group are never treated as independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import special, stats

from engine.errors import AnalysisError
from engine.stats.resampling import unit_index

Array = NDArray[np.float64]
Groups = Int[np.ndarray, " n"] | NDArray[np.str_] | None
KEPT = 2**21
"""Numbers in the counts of a bootstrap that are kept for the next one alike."""


@dataclass(frozen=True)
class Interval:
    """A number with an interval.

    Attributes:
        estimate, low, high: in the unit of the quantity. level: coverage aimed at.
        method: how the interval was made, for captions.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Band:
    """Many numbers with intervals: arrays of one shape. `se` is their standard error."""

    estimate: Array
    low: Array
    high: Array
    se: Array
    level: float
    method: str

    def at(self, index: int | tuple[int, ...]) -> Interval:
        """One entry as an `Interval`."""
        return Interval(
            float(self.estimate[index]),
            float(self.low[index]),
            float(self.high[index]),
            self.level,
            self.method,
        )


def resample_weights(n: int, n_boot: int, seed: int, groups: Groups = None) -> Float[np.ndarray, "b n"]:
    """Bootstrap counts for each prompt (n_boot, n): groups are drawn as wholes, with replacement."""
    unit = unit_index(n, groups)
    size = int(unit.max()) + 1 if n else 0
    if size < 2 or n_boot < 2:
        raise AnalysisError(
            "Too few units to resample.",
            expected="at least 2 prompts (or groups) and 2 resamples",
            given=f"{size} units, {n_boot} resamples",
            next_step="Add prompts, or show the estimate without an interval.",
        )
    counts = _kept_counts(size, n_boot, seed) if size * n_boot <= KEPT else _counts(size, n_boot, seed)
    return counts if np.array_equal(unit, np.arange(n)) else counts[:, unit]


def _counts(size: int, n_boot: int, seed: int) -> Array:
    """How often each unit is drawn, (n_boot, size), column by column in memory."""
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=n_boot)
    counts: Array = np.asfortranarray(drawn, dtype=np.float64)
    counts.flags.writeable = False
    return counts


_kept_counts = lru_cache(maxsize=8)(_counts)  # a page resamples many quantities alike


def band(estimate: Array, draws: Float[np.ndarray, "b *shape"], level: float, method: str) -> Band:
    """Percentile band of resampled values (draws along the first axis); NaN draws are left out."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    if np.isfinite(draws).all():
        low, high = np.quantile(draws, tails, axis=0)
        return Band(np.asarray(estimate), low, high, draws.std(axis=0, ddof=1), level, method)
    defined = np.isfinite(draws).sum(axis=0) >= 2
    safe = np.where(defined, draws, 0.0)
    low, high = np.nanquantile(safe, tails, axis=0)
    se = np.nanstd(safe, axis=0, ddof=1)
    low, high, se = (np.where(defined, v, np.nan) for v in (low, high, se))
    return Band(np.asarray(estimate), low, high, se, level, method)


def wilson(successes: float, trials: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a rate (Wilson 1927), for independent trials only.

    Raises:
        AnalysisError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise AnalysisError(
            "A rate needs trials.",
            expected="0 ≤ successes ≤ trials, trials ≥ 1",
            given=f"{successes} of {trials}",
        )
    z = float(stats.norm.ppf((1 + level) / 2))
    rate, extra = successes / trials, z * z / trials
    centre = (rate + extra / 2) / (1 + extra)
    half = z / (1 + extra) * float(np.sqrt(rate * (1 - rate) / trials + extra / (4 * trials)))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half), level, "Wilson score")


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Step-down adjusted p-values (Holm 1979): reject where ≤ α to keep the familywise error at α.

    NaN entries stay NaN and don't count as tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * np.arange(order.size, 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return out


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts (binomial, rate ½).

    Args:
        only_first: cases where only the first condition succeeded. only_second: the reverse.
    """
    if min(only_first, only_second) < 0:
        raise AnalysisError(
            "Counts cannot be negative.", expected="two counts ≥ 0", given=f"{only_first} and {only_second}"
        )
    total = only_first + only_second
    if total == 0:
        return 1.0
    return float(min(1.0, 2 * stats.binom.cdf(min(only_first, only_second), total, 0.5)))


def random_subspace_moments(d: int, k: int, trace: float, trace_of_square: float) -> tuple[float, float]:
    """Mean and variance of tr(BᵀSB) for a uniformly random k-subspace B of R^d.

    Exact: mean k/d·tr S, variance 2k(d−k)/(d(d−1)(d+2))·(tr S² − (tr S)²/d), from the fourth
    moments of Haar-distributed orthonormal frames (Collins & Śniady 2006).

    Args:
        trace: tr S. trace_of_square: tr S².
    """
    if not 1 <= k <= d or d < 2:
        raise AnalysisError("No such subspace.", expected="1 ≤ k ≤ d, d ≥ 2", given=f"k = {k}, d = {d}")
    spread = max(0.0, trace_of_square - trace * trace / d)
    return k / d * trace, 2 * k * (d - k) / (d * (d - 1) * (d + 2)) * spread


@dataclass(frozen=True)
class EnergyFraction:
    """Energy of rows in a subspace, against uniformly random subspaces of the same dimension.

    Attributes:
        fraction: share of the rows' energy inside the basis. ratio: fraction over k/d.
        mean, sd: exact moments under a random subspace. z: (fraction − mean)/sd.
        p: one-sided (larger) p-value from the Beta distribution with these two moments.
        k, d: dimensions after removing directions.
    """

    fraction: float
    ratio: float
    mean: float
    sd: float
    z: float
    p: float
    k: int
    d: int


def energy_fraction(
    rows: Float[np.ndarray, "n d"],
    basis: Float[np.ndarray, "d k"],
    *,
    normalise_rows: bool = True,
    removed: Float[np.ndarray, "d r"] | None = None,
) -> EnergyFraction:
    """Energy fraction of `basis` in `rows`, with its exact null.

    S = (1/n) Σ x xᵀ/‖x‖² over the rows (each row counts alike), or MᵀM/‖M‖_F² without
    normalising (for weights, pass Mᵀ to ask about M's column space). fraction = tr(BᵀSB).

    Args:
        rows: (n, d); rows of zero length carry no direction and are left out.
        basis: column-orthonormal (d, k).
        removed: column-orthonormal directions to take out first, d → d − r; the basis is projected
            and re-orthonormalised, losing the dimensions that lie inside `removed`.

    Raises:
        AnalysisError: nothing left of the rows or of the basis.
    """
    x, b = np.asarray(rows, dtype=np.float64), np.asarray(basis, dtype=np.float64)
    d = x.shape[1]
    if removed is not None:
        x = x - (x @ removed) @ removed.T
        left, sigma, _ = np.linalg.svd(b - removed @ (removed.T @ b), full_matrices=False)
        b, d = left[:, sigma > 1e-6], d - removed.shape[1]
    norms = np.linalg.norm(x, axis=1)
    keep = norms > 1e-12 * max(float(norms.max(initial=0.0)), 1e-300)
    if not keep.any() or b.shape[1] == 0:
        raise AnalysisError(
            "There is no energy to divide.",
            expected="rows and a basis that are not zero",
            given=f"{int(keep.sum())} non-zero rows, basis of rank {b.shape[1]}",
        )
    x = x[keep] / norms[keep, None] / np.sqrt(keep.sum()) if normalise_rows else x / np.linalg.norm(x)
    inner = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    mean, variance = random_subspace_moments(d, b.shape[1], 1.0, float((inner * inner).sum()))
    fraction = float(((x @ b) ** 2).sum())
    sd = float(np.sqrt(variance))
    return EnergyFraction(
        fraction,
        fraction / mean,
        mean,
        sd,
        (fraction - mean) / sd if sd > 0 else 0.0,
        energy_p_value(fraction, mean, variance),
        b.shape[1],
        d,
    )


def energy_p_value(fraction: float, mean: float, variance: float) -> float:
    """P(a random subspace holds at least this fraction), from the Beta with these two moments.

    For a single row the Beta is the exact law; its 95–99 % quantiles are within about 2 % otherwise.
    """
    return float(energy_p_values(np.array(fraction), np.array(mean), np.array(variance)))


def energy_p_values(
    fraction: Float[np.ndarray, "*s"], mean: Float[np.ndarray, "*s"], variance: Float[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """`energy_p_value` of many fractions at once; 1 where every subspace holds the same, NaN stays NaN."""
    fixed = variance <= 1e-14 * mean * mean
    size = mean * (1 - mean) / np.where(fixed, 1.0, variance) - 1
    tail = special.betaincc(mean * size, (1 - mean) * size, np.clip(fraction, 0.0, 1.0))
    return np.where(fixed, 1.0, tail)


def energy_range(
    mean: Float[np.ndarray, "*s"], variance: Float[np.ndarray, "*s"], level: float = 0.95
) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
    """Central range of a random subspace's fraction, the Beta of `energy_p_value`; the mean where fixed."""
    centre, spread = np.asarray(mean, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    fixed = spread <= 1e-14 * centre * centre
    size = centre * (1 - centre) / np.where(fixed, 1.0, spread) - 1
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = (special.betaincinv(centre * size, (1 - centre) * size, t) for t in tails)
    return np.where(fixed, centre, low), np.where(fixed, centre, high)
