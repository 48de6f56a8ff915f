"""Intervals of means and ratios of means that hold for few and skewed prompts.

One interval for every mean of (paired) values that a sentence judges. With T_g and B_g the sums of numerator
and denominator over unit g (a prompt, or a group that is drawn as a whole), R = Σ T / Σ B and

    se² = G/(G − 1) · Σ_g (T_g − R B_g)² / (Σ_g B_g)²,

every resample has its own R* and se*, and the ends are R − q_hi se and R − q_lo se, q the quantiles of
(R* − R)/se* (bootstrap-t: Efron 1979; Hall 1988). It follows skew, which the percentile interval follows the
wrong way. The tails are those that few units need (Hesterberg 2015, §4.2), and of them the share
n/(n + 12), for the skew that few units don't show. A true mean of 0 is said to differ, either way, in percent
of 4000 samples with 2000 resamples; by the percentile bootstrap in the percentage in brackets:

    units        8            12           24           42
    lognormal    3.2 (21)     3.5 (19)     4.8 (14)     5.0 (11)
    exponential  1.3 (16)     1.9 (12)     2.5 (9)      3.3 (8)
    normal       0.9 (12)     1.6 (8)      2.7 (7)      3.2 (6)
    Student's t₃ 0.4 (12)     1.7 (10)     4.4 (7)      5.1 (6)
    fails in 25 % of units, three times as much as it gains elsewhere
                 9.3 (15)     4.7 (13)     2.0 (8)      2.7 (7)
    fails in 10 %, nine times as much
                 40 (43)      29 (29)      11 (16)      4.7 (11)

No interval knows of failures that no unit shows: where a tenth of all units fail, 12 units show none in 28 %
of samples. `FEWEST` units are needed before a sentence is said.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import special

from engine.errors import AnalysisError
from engine.stats.resampling import unit_index
from engine.stats.uncertainty import Array, Band, Groups, Interval, resample_weights

FEWEST = 12
"""Units below which no mean is said to differ: a failure in a quarter of them would be missed by more than
one sample in twenty (0.75¹¹ = 4 %)."""
STUDENT_BELOW = 8
"""Units below which the ends also reach Student's: resamples of so few hold few different values."""
FARTHEST = 4.0
"""Times Student's reach that an end lies away at most: of a few units with one that outweighs the others,
resamples without it have next to no spread, and a t without bound."""
UNSEEN = 12
"""Units in the share of the tail that is used, n/(n + 12): the rest is kept for skew that few don't show."""
CHUNK = 2**21
"""Numbers in the resampled values of one go."""


def expanded_level(level: float, units: int) -> float:
    """Level of a percentile bootstrap of a mean that covers `level` with few units (Hesterberg 2015, §4.2).

    The percentile interval is too short by √((n − 1)/n), and by what Student's t has over the normal law:
    the tail α/2 becomes Φ(−√(n/(n − 1)) t₍α/2, n−1₎).
    """
    if units < 2:
        return level
    t = float(special.stdtrit(units - 1, (1 + level) / 2)) * float(np.sqrt(units / (units - 1)))
    return float(special.ndtr(t) - special.ndtr(-t))


def bootstrap_mean(
    values: Float[np.ndarray, " n"],
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean over prompts with its studentised interval.

    Args:
        values: (n,), finite. groups: unit of each prompt.
    """
    return bootstrap_means(values, groups=groups, n_boot=n_boot, level=level, seed=seed).at(())


def bootstrap_means(
    values: Float[np.ndarray, "*shape n"],
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    together: bool = False,
) -> Band:
    """`bootstrap_ratios` with a denominator of 1: means over the last axis."""
    ones = np.ones(np.shape(values)[-1:])
    options = {"groups": groups, "n_boot": n_boot, "level": level, "seed": seed, "together": together}
    return bootstrap_ratios(values, ones, **options)  # type: ignore[arg-type]


def bootstrap_ratio(
    numerator: Float[np.ndarray, " n"],
    denominator: Float[np.ndarray, " n"],
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Ratio of means Σ numerator / Σ denominator with its studentised interval, paired.

    The same prompts are drawn on both sides, so what they share cancels. A percentage reduction is
    100·bootstrap_ratio(raw − mapped, raw).

    Raises:
        AnalysisError: different lengths, not finite, or a denominator that sums to zero.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if top.ndim != 1 or top.shape != bottom.shape:
        raise AnalysisError(
            "Both sides of a ratio need one value per prompt.",
            expected="two arrays (n,)",
            given=f"shapes {top.shape} and {bottom.shape}",
        )
    found = bootstrap_ratios(top, bottom, groups=groups, n_boot=n_boot, level=level, seed=seed)
    return found.at(())


def bootstrap_ratios(
    numerator: Float[np.ndarray, "*shape n"],
    denominator: Float[np.ndarray, "*shape n"],
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    together: bool = False,
) -> Band:
    """Ratios of means Σ numerator / Σ denominator over prompts (last axis), with studentised intervals.

    The same prompts are drawn for all entries and on both sides. Both arrays are broadcast to one shape. An
    entry whose units all have the same ratio has an interval without a width.

    Args:
        together: the intervals of all entries hold at once: the quantiles are those of the largest and of
            the smallest (R* − R)/se* of a resample (max-t: Westfall & Young 1993; Romano & Wolf 2005). Needs
            resamples enough for their tail, not for that of one entry among many, as Bonferroni does.

    Raises:
        AnalysisError: not finite, or a denominator that sums to 0.
    """
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise AnalysisError(
            "Some values are not finite.",
            expected="finite values for every prompt",
            given=f"{int((~np.isfinite(top)).sum() + (~np.isfinite(bottom)).sum())} NaN or inf",
        )
    shape, n = top.shape[:-1], top.shape[-1]
    if (bottom.sum(axis=-1) == 0).any():
        raise AnalysisError("The ratio has no denominator.", expected="sums other than 0", given="0")
    unit = unit_index(n, groups)
    counts = resample_weights(int(unit.max(initial=-1)) + 1, n_boot, seed)
    units = counts.shape[1]
    member = np.zeros((n, units))
    member[np.arange(n), unit] = 1.0
    tops, bottoms = top.reshape(-1, n) @ member, bottom.reshape(-1, n) @ member
    tail = (1 - expanded_level(level, units)) / 2 * units / (units + UNSEEN)
    step = max(1, len(tops) if together else CHUNK // n_boot)
    parts = [
        _studentised(tops[at : at + step], bottoms[at : at + step], counts, tail, together)
        for at in range(0, len(tops), step)
    ]
    estimate = (top.sum(axis=-1) / bottom.sum(axis=-1)).reshape(-1)
    se, spread, low, high = (np.concatenate([part[i] for part in parts]) for i in range(4))
    student = float(special.stdtrit(units - 1, (1 + level) / 2))
    low, high = (
        np.where(se > 0, np.clip(v, -FARTHEST * student, FARTHEST * student), 0.0) for v in (low, high)
    )
    low, high = estimate - high * se, estimate - low * se
    if units < STUDENT_BELOW:
        reach = student * se
        low, high = np.minimum(low, estimate - reach), np.maximum(high, estimate + reach)
    method = f"studentised bootstrap over {'prompts' if groups is None else 'groups'}"
    found = Band(estimate, low, high, spread, level, method)
    return replace(found, **{k: getattr(found, k).reshape(shape) for k in ("estimate", "low", "high", "se")})


def exceed(
    values: Float[np.ndarray, "*shape n"], floor: float, *, groups: Groups = None, level: float = 0.95
) -> Bool[np.ndarray, "*shape"]:
    """Whether means over the last axis of values that can't be negative are shown to lie above `floor`.

    Exact for any law and any number of units: were the mean of a unit's value x at most `floor`, the mean of
    Π (1 + x/floor)/2 over independent units would be at most 1, and it would reach 2/(1 − level) with at most
    half the probability that an interval misses (Markov's inequality; Waudby-Smith & Ramdas 2024).
    """
    x = np.asarray(values, dtype=np.float64)
    unit = unit_index(x.shape[-1], groups)
    units = int(unit.max(initial=-1)) + 1
    member = np.zeros((x.shape[-1], units))
    member[np.arange(x.shape[-1]), unit] = units / x.shape[-1]
    own = np.maximum(x @ member, 0.0)
    if floor <= 0:
        return np.asarray((own > 0).any(axis=-1))
    evidence = np.log1p(own / floor).sum(axis=-1) - units * np.log(2)
    return np.asarray(evidence > np.log(2 / (1 - level)))


def _studentised(
    tops: Array, bottoms: Array, counts: Array, tail: float, together: bool
) -> tuple[Array, Array, Array, Array]:
    """se, the draws' standard deviation, and quantiles of (R* − R)/se* at `tail` and 1 − `tail`.

    Each (rows,). A resample without a spread of its own (one unit drawn throughout) has no t and is left out.

    Args:
        tops, bottoms: (rows, G) sums over units. counts: (B, G).
    """
    units = counts.shape[1]
    ratio = tops.sum(axis=1) / bottoms.sum(axis=1)
    left = tops - ratio[:, None] * bottoms
    # Residuals about R have the same t as the values themselves, and no offset to cancel.
    under, over = counts @ bottoms.T, counts @ left.T
    shift = np.divide(over, under, out=np.full(under.shape, np.nan), where=under != 0)
    square = counts @ (left**2).T - 2 * shift * (counts @ (left * bottoms).T)
    square += shift**2 * (counts @ (bottoms**2).T)
    scale = units / (units - 1)
    se = np.sqrt(scale * (left**2).sum(axis=1)) / np.abs(bottoms.sum(axis=1))
    se = np.where(se > 1e-12 * np.abs(tops).sum(axis=1) / np.abs(bottoms.sum(axis=1)), se, 0.0)
    own = np.sqrt(scale * np.maximum(square, 0.0))
    own = np.divide(own, np.abs(under), out=np.zeros(own.shape), where=under != 0)
    t = np.divide(shift, own, out=np.full(own.shape, np.nan), where=own > 1e-6 * np.maximum(se, 1e-300))
    spread = _spread(shift)
    if not together:
        return se, spread, *_quantiles(t, tail)
    moving = t[:, se > 0]
    if not moving.size:
        return se, spread, np.zeros_like(se), np.zeros_like(se)
    low = _quantiles(np.where(np.isnan(moving), np.inf, moving).min(axis=1), tail)[0]
    high = _quantiles(np.where(np.isnan(moving), -np.inf, moving).max(axis=1), tail)[1]
    return se, spread, np.full_like(se, low), np.full_like(se, high)


def _spread(draws: Array) -> Array:
    good = np.isfinite(draws)
    count = np.maximum(good.sum(axis=0), 2)
    centred = np.where(good, draws, 0.0)
    mean = centred.sum(axis=0) / count
    return np.asarray(np.sqrt((np.where(good, draws - mean, 0.0) ** 2).sum(axis=0) / (count - 1)))


def _quantiles(t: NDArray[np.float64], tail: float) -> tuple[Array, Array]:
    """Quantiles along the first axis of what is finite; 0 where nothing is."""
    if np.isfinite(t).all():
        low, high = np.quantile(t, [tail, 1 - tail], axis=0)
        return np.asarray(low), np.asarray(high)
    known = np.isfinite(t)
    some = np.where(known.any(axis=0), np.where(known, t, np.nan), 0.0)
    low, high = np.nanquantile(some, [tail, 1 - tail], axis=0)
    return np.asarray(low), np.asarray(high)
