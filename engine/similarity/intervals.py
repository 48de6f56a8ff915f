"""Bootstrap and jackknife intervals of CKA, from Gram matrices alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats

from engine.errors import AnalysisError
from engine.similarity.forms import Array, Units
from engine.similarity.grams import NO_STRUCTURE, ZERO_VARIANCE, Grams, as_layers, check_pair
from engine.similarity.left_out import left_out_cka
from engine.similarity.resampler import Method, Outcome, resampled
from engine.stats.resampling import Resamples, resamples, unit_index


@dataclass(frozen=True)
class CkaBand:
    """CKA with an interval, for one pair of Grams (arrays of shape ()) or a stack (shape (L,)).

    Attributes:
        estimate: CKA of all prompts. low, high: ends of the interval.
        se: standard error (standard deviation of the resamples, or the jackknife's).
        mean: mean of the resamples. Above the estimate where duplicates raise a biased CKA.
        debiased: which estimator. level: coverage aimed at.
        method: name of the interval, for captions.
        unit: "prompt" or "group"; n_units: how many were resampled.
        n_resamples: resamples drawn; undefined: how many of them had no defined value.
        left_out: root-mean-square error of the fast form in standard errors, measured on
            16 resamples; 0 where all resamples were evaluated exactly.
        reasons: why a value is NaN, else None.
    """

    estimate: Array
    low: Array
    high: Array
    se: Array
    mean: Array
    debiased: bool
    level: float
    method: str
    unit: str
    n_units: int
    n_resamples: int
    undefined: NDArray[np.intp]
    left_out: Array
    reasons: tuple[str | None, ...]


def _interval(values: Array, estimate: Array, level: float, debiased: bool) -> tuple[Array, Array]:
    """Percentile interval; for the biased estimator centred on the estimate and kept inside [0, 1]."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.full(estimate.shape, np.nan), np.full(estimate.shape, np.nan)
    for i, row in enumerate(values):
        good = row[np.isfinite(row)]
        if good.size < 2 or not np.isfinite(estimate[i]):
            continue
        low[i], high[i] = np.quantile(good, tails)
        if not debiased:
            shift = estimate[i] - good.mean()
            low[i], high[i] = max(0.0, low[i] + shift), min(1.0, high[i] + shift)
    return low, high


def bootstrap_curves(
    grams_a: Grams | Float[np.ndarray, "n n"],
    grams_b: Grams | Float[np.ndarray, "n n"],
    *,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "auto",
) -> tuple[CkaBand, CkaBand]:
    """Biased and debiased CKA of each layer with bootstrap intervals, from shared resamples.

    The same resamples serve all layers, so differences between layers are comparable. See
    `engine.similarity.forms` for the formulas and `docs/methods/similarity.md` for the reading.

    Args:
        grams_a, grams_b: Gram matrices (n, n) of the same prompts, or stacks (L, n, n).
        groups: resampling unit of each prompt (its pair_id); None resamples prompts.
        n_boot: number of resamples (the cyclic set rounds up a little).
        level: coverage of the intervals.
        seed: seed of the resamples.
        method: "exact" evaluates each resample fully, "fast" uses the first-order form, "auto"
            the fast one from 200 units on and the exact one for layers where the measured
            error is above 0.1 standard errors.

    Returns:
        (biased, debiased). The debiased interval is the percentile one with pairs of equal prompts
        dropped, widened where the jackknife, estimate ± t·se, reaches further: percentiles are too
        narrow where tails are heavy. For independent sides it is up to √3 too wide, because
        the counts' own noise is added to the sample's. The biased one is centred on the estimate:
        duplicated prompts raise a biased CKA further, so plain percentiles can miss it.

    Raises:
        AnalysisError: different shapes, fewer than 4 prompts, groups that don't fit.
    """
    a, single = as_layers(grams_a)
    b, _ = as_layers(grams_b)
    if len(a) != len(b) or not a:
        raise AnalysisError(
            "A curve compares layer with layer.",
            expected="as many layers on both sides",
            given=f"{len(a)} and {len(b)}",
        )
    for left, right in zip(a, b, strict=True):
        check_pair(left, right, True)
    units = Units.of(unit_index(a[0].shape[0], groups))
    drawn = resamples(units.starts.size, n_boot, seed)
    outcome = resampled(a, b, drawn, units, method)
    names = (
        "percentile bootstrap, centred on the estimate",
        "percentile bootstrap, equal pairs dropped, no narrower than the jackknife",
    )
    reach = _reach(a, b, units, outcome.points[:, 0], level)
    biased = _band(outcome, False, level, names[0], units, single)
    return biased, _band(outcome, True, level, names[1], units, single, reach)


def _reasons(outcome: Outcome, kind: int) -> tuple[str | None, ...]:
    """Why each layer's value is NaN, in the words of `cka_from_grams`."""
    out: list[str | None] = []
    for value, alive in zip(outcome.points[:, kind], outcome.alive, strict=True):
        dead = [side for side, ok in zip(("first", "second"), alive, strict=True) if not ok]
        if dead:
            out.append(ZERO_VARIANCE.format(side=dead[0]))
        else:
            out.append(None if np.isfinite(value) else NO_STRUCTURE.format(side="first or second"))
    return tuple(out)


def _reach(a: Grams, b: Grams, units: Units, estimate: Array, level: float) -> Array:
    """t·se of the delete-one-unit jackknife of each debiased CKA, (L,); NaN where one isn't defined."""
    g = units.starts.size
    left = np.array([left_out_cka(x, y, units) for x, y in zip(a, b, strict=True)])
    squares = ((left - left.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    se = np.sqrt((g - 1) / g * squares)
    return np.where(np.isfinite(estimate), stats.t.ppf((1 + level) / 2, g - 1) * se, np.nan)


def _band(
    outcome: Outcome,
    debiased: bool,
    level: float,
    name: str,
    units: Units,
    single: bool,
    reach: Array | None = None,
) -> CkaBand:
    kind = 0 if debiased else 1
    estimate, values = outcome.points[:, kind], outcome.values[:, kind]
    low, high = _interval(values, estimate, level, debiased)
    if reach is not None:
        low = np.fmin(low, estimate - reach)
        high = np.fmax(high, np.maximum(estimate, np.fmin(estimate + reach, 1.0)))
    good = np.isfinite(values)
    count = np.maximum(good.sum(1), 1)
    mean = np.where(good.any(1), np.where(good, values, 0.0).sum(1) / count, np.nan)
    squares = (np.where(good, values - mean[:, None], 0.0) ** 2).sum(1)
    se = np.where(good.any(1), np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
    undefined = np.isfinite(estimate) * (~good).sum(1)
    shape: tuple[int, ...] = () if single else estimate.shape
    return CkaBand(
        estimate=estimate.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        se=se.reshape(shape),
        mean=mean.reshape(shape),
        debiased=debiased,
        level=level,
        method=name,
        unit="prompt" if units.single else "group",
        n_units=units.starts.size,
        n_resamples=values.shape[1],
        undefined=undefined.reshape(shape),
        left_out=outcome.left_out[:, kind].reshape(shape),
        reasons=_reasons(outcome, kind),
    )


def bootstrap_cka(
    grams_a: Grams | Float[np.ndarray, "n n"],
    grams_b: Grams | Float[np.ndarray, "n n"],
    *,
    debiased: bool = True,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "auto",
) -> CkaBand:
    """One of the two bands of `bootstrap_curves`; same arguments, plus which estimator."""
    biased, unbiased = bootstrap_curves(
        grams_a, grams_b, groups=groups, n_boot=n_boot, level=level, seed=seed, method=method
    )
    return unbiased if debiased else biased


def jackknife_cka(
    grams_a: Grams | Float[np.ndarray, "n n"],
    grams_b: Grams | Float[np.ndarray, "n n"],
    *,
    debiased: bool = True,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None = None,
    level: float = 0.95,
) -> CkaBand:
    """CKA with a delete-one-unit jackknife interval, estimate ± t_{G−1}·se (Efron & Stein 1981).

    Leaving a unit out is a resample with one zero count, so the same exact formulas serve; no
    prompt is duplicated, hence nothing is re-biased. Too wide for independent sides, less than the bootstrap.
    """
    _, single = as_layers(grams_a)
    outcome, units = _without_each(grams_a, grams_b, debiased, groups)
    g = units.starts.size
    base = _band(outcome, debiased, level, "jackknife", units, single)
    values = outcome.values[:, 0 if debiased else 1]
    squares = np.nansum((values - np.atleast_1d(base.mean)[:, None]) ** 2, axis=1)
    se = np.where(np.isfinite(np.atleast_1d(base.estimate)), np.sqrt((g - 1) / g * squares), np.nan)
    se = se.reshape(base.estimate.shape)
    half = stats.t.ppf((1 + level) / 2, g - 1) * se
    return replace(base, low=base.estimate - half, high=base.estimate + half, se=se)


def _without_each(
    grams_a: Grams | Float[np.ndarray, "n n"],
    grams_b: Grams | Float[np.ndarray, "n n"],
    debiased: bool,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None,
) -> tuple[Outcome, Units]:
    """CKA of each layer without each unit in turn."""
    a, _ = as_layers(grams_a)
    b, _ = as_layers(grams_b)
    for left, right in zip(a, b, strict=True):
        check_pair(left, right, debiased)
    units = Units.of(unit_index(a[0].shape[0], groups))
    counts = (1.0 - np.eye(units.starts.size)).astype(np.float32)
    return resampled(a, b, Resamples(counts, None), units, "exact"), units


def cka_difference(
    first: tuple[Grams, Grams],
    second: tuple[Grams, Grams],
    *,
    debiased: bool = True,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None = None,
    level: float = 0.95,
) -> tuple[Array, Array, Array]:
    """CKA of one pair of models minus that of another on the same prompts, layer by layer.

    Args:
        first, second: Grams (L, n, n) of both models of a pair, of the same prompts in all four.
        groups: unit of each prompt, which is left out as a whole.

    Returns:
        (difference, low, high), each (L,), by the delete-one-unit jackknife of the difference itself,
        ± t_{G−1}·se: the same prompts stand in both, so what both share in error falls out.
    """
    kind = 0 if debiased else 1
    (one, units), (other, _) = (_without_each(*pair, debiased, groups) for pair in (first, second))
    apart, found = (one.values - other.values)[:, kind], (one.points - other.points)[:, kind]
    g = units.starts.size
    squares = ((apart - apart.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    half = stats.t.ppf((1 + level) / 2, g - 1) * np.sqrt((g - 1) / g * squares)
    return found, found - half, found + half
