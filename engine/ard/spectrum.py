"""What fitted lengthscales say: which dimensions survive, whether they form a group of their own, and whether
they are those of another subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import optimize, stats
from sklearn.mixture import GaussianMixture

from engine.errors import AnalysisError
from engine.stats.permuted import smallest_p

Array = NDArray[np.float64]
SEPARATED = 2.0
"""Ashman's D from which two components count as apart (Ashman, Bird & Zepf 1994)."""
LEVEL = 0.05
OUTLYING = 3.5
"""Modified z-score from which a value counts as an outlier (Iglewicz & Hoaglin 1993)."""
SPREAD = 0.05
"""Standard deviation of log₁₀ ℓ below which nothing was told apart."""


@dataclass(frozen=True)
class Spectrum:
    """Shape of log₁₀ ℓ over dimensions.

    Attributes:
        kind: "bimodal" (two components by BIC and Ashman's D > 2), "graded", or "nothing found".
        bic: (one component, two components). ashman_d: distance of two components in units of their sds.
        crossing: log₁₀ ℓ where the two components are equally likely; None unless BIC prefers two.
    """

    kind: Literal["bimodal", "graded", "nothing found"]
    bic: tuple[float, float]
    ashman_d: float
    crossing: float | None


def spectrum(log_lengthscales: Float[np.ndarray, " d"], seed: int = 0) -> Spectrum:
    """Fits one and two Gaussians to log₁₀ ℓ (natural logarithms are given)."""
    values = np.asarray(log_lengthscales, dtype=np.float64) / np.log(10.0)
    if values.ndim != 1 or values.size < 8 or not np.isfinite(values).all():
        raise AnalysisError("A spectrum needs lengthscales.", expected="8 or more", given=values.shape)
    column = values[:, None]
    if values.std() < SPREAD:
        return Spectrum("nothing found", (float("nan"), float("nan")), 0.0, None)
    one, two = (  # one Gaussian is the same from every start
        GaussianMixture(c, random_state=seed, n_init=starts, reg_covar=1e-6).fit(column)
        for c, starts in ((1, 1), (2, 5))
    )
    low, high = np.argsort(two.means_[:, 0])
    means, variances = two.means_[[low, high], 0], two.covariances_[[low, high], 0, 0]
    distance = float(np.sqrt(2) * (means[1] - means[0]) / np.sqrt(variances.sum()))
    bic = (float(one.bic(column)), float(two.bic(column)))
    if bic[1] >= bic[0]:
        return Spectrum("graded", bic, distance, None)
    crossing = _crossing(two.weights_[[low, high]], means, np.sqrt(variances))
    return Spectrum("bimodal" if distance > SEPARATED else "graded", bic, distance, crossing)


def _crossing(weights: Array, means: Array, sds: Array) -> float:
    def gap(at: float) -> float:
        first, second = np.log(weights) + stats.norm.logpdf(at, means, sds)
        return float(first - second)

    low, high = float(means[0]), float(means[1])
    if gap(low) <= 0 or gap(high) >= 0:  # one component covers the other's mean
        return (low + high) / 2
    return float(optimize.brentq(gap, low, high))


OLDER_DRAWS = 999
"""Random pairings of runs that don't say how small their p can be."""


def with_least_p(held: Mapping[str, Any] | None, categories: int) -> Mapping[str, Any] | None:
    """Stored held-out figures with how small their p can be, for runs that don't say it.

    Args:
        categories: of the prompts that the run could choose from. Where there are several and nothing was
            permuted within them, each has one held-out problem, and no order can be told from another.
    """
    if held is None or "least_p" in held:
        return held
    alone = held["p_within"] is None and categories > 1
    return {**held, "least_p": 1.0 if alone else smallest_p(OLDER_DRAWS, int(held["n"]))}


def judged(held: Mapping[str, Any] | None, tests: int = 1) -> float | None:
    """The p that says whether a fit found anything, from its stored held-out figures (`ard.holdout.HeldOut`).

    Within categories where held-out problems have several: two clouds of one category are alike in both
    languages, and the rest needs no problem to be shared.

    Args:
        held: with its least p (`with_least_p`). tests: how many of them Holm's method adjusts together.

    Returns:
        None where nothing is tested: no held-out problems, or so few (of one category) that no p could be
        below 0.05 after the adjustment.
    """
    if held is None:
        return None
    if tests * float(held["least_p"]) >= LEVEL:
        return None
    within = held["p_within"]
    return float(held["p"] if within is None else within)


Found = Literal["collapsed", "nothing found", "not tested", "bimodal", "graded"]


def conclusion(kind: str, *, collapsed: bool, p: float | None) -> Found:
    """What a fit found, from its spectrum, its collapse and its held-out problems.

    Rule: "collapsed" first; "nothing found" where the spectrum says so or the fitted kernel doesn't pair
    held-out problems (p ≥ 0.05; `judged`): fits of noise are bimodal too; "not tested" without held-out
    problems, or too few; else the spectrum's kind.
    """
    if collapsed:
        return "collapsed"
    if kind == "nothing found" or (p is not None and not p < LEVEL):
        return "nothing found"
    if p is None:
        return "not tested"
    return "bimodal" if kind == "bimodal" else "graded"


Rule = Literal["outlier", "mixture", "fixed", "median"]


def surviving(
    log_lengthscales: Float[np.ndarray, " d"],
    rule: Rule = "outlier",
    threshold: float | None = None,
    seed: int = 0,
) -> tuple[Bool[np.ndarray, " d"], float]:
    """Dimensions whose log₁₀ ℓ is under a threshold, and the threshold.

    Args:
        rule: "outlier": 3.5 robust standard deviations (1.4826 median absolute deviations) below the median,
            round which the penalty gathers every dimension that the objective does not need; for fewer
            survivors than half of the dimensions. "mixture": the crossing of two components, no dimension
            where BIC prefers one. "fixed": at `threshold`. "median": half of all dimensions by construction,
            whatever was found.
    """
    values = np.asarray(log_lengthscales, dtype=np.float64) / np.log(10.0)
    if rule == "fixed":
        if threshold is None:
            raise AnalysisError("A fixed rule needs a threshold.", expected="log₁₀ ℓ", given=None)
        limit = float(threshold)
    elif rule == "median":
        limit = float(np.median(values))
    elif rule == "outlier":
        limit = float(np.median(values) - OUTLYING * stats.median_abs_deviation(values, scale="normal"))
    else:
        crossing = spectrum(log_lengthscales, seed).crossing
        limit = -np.inf if crossing is None else crossing
    return values < limit, limit


@dataclass(frozen=True)
class Overlap:
    """How far surviving dimensions are those of a subspace.

    Attributes:
        shared: dimensions among both; chance: expected for sets of these sizes drawn at random.
        p: hypergeometric, of at least `shared`. energy: share of the subspace's energy on the survivors.
        circular: the fit was started from this very subspace, so the overlap proves nothing.
    """

    shared: int
    chance: float
    p: float
    energy: float
    circular: bool


def overlap(
    survivors: Bool[np.ndarray, " d"], basis: Float[np.ndarray, "d k"], *, warm_started: bool = False
) -> Overlap:
    """Surviving dimensions against the k dimensions on which a (d, k) basis has most energy."""
    energy = (np.asarray(basis, dtype=np.float64) ** 2).sum(axis=1)
    return energy_overlap(survivors, energy, basis.shape[1], warm_started=warm_started)


def energy_overlap(
    survivors: Bool[np.ndarray, " d"], energy: Float[np.ndarray, " d"], k: int, *, warm_started: bool = False
) -> Overlap:
    """`overlap` from each dimension's energy in a k-dimensional subspace."""
    kept, d = np.asarray(survivors, dtype=bool), len(energy)
    top = np.argsort(-energy, kind="stable")[:k]
    shared, size = int(kept[top].sum()), int(kept.sum())
    p = float(stats.hypergeom.sf(shared - 1, d, size, k))
    return Overlap(shared, size * k / d, p, float(energy[kept].sum() / energy.sum()), warm_started)


def overlap_range(size: int, k: int, d: int, level: float = 0.95) -> tuple[int, int]:
    """Central range of the overlap of random sets of `size` and k of d dimensions (hypergeometric)."""
    tail = (1 - level) / 2
    low, high = stats.hypergeom.ppf([tail, 1 - tail], d, size, k)
    return int(low), int(high)


def start_p(kept: float, of_random: Sequence[float]) -> float:
    """One-sided rank p of how much of its own start a fit keeps, among starts by random subspaces."""
    random = np.asarray(of_random, dtype=np.float64)
    return float((1 + (random >= kept).sum()) / (1 + random.size))
