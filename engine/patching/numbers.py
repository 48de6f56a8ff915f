"""What a mapped patch is worth: the amplitude chosen on train, reduction of KL, controls, correlations.

All from per-prompt KLs in nats. KL_raw is of the source's moment-matched activation, KL_mapped of the same
activation carried over by a transport map; ΔKL = KL_raw − KL_mapped and drop% = 100 ΔKL / KL_raw, a ratio of
means. Intervals of means are studentised bootstraps (`engine.stats.means`), those of correlations percentile
ones, over prompts, or over groups where prompts come in pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.stats.means import bootstrap_means, bootstrap_ratios, exceed
from engine.stats.uncertainty import Array, Band, Interval, band, resample_weights

METHOD = "percentile bootstrap over groups"
ROUNDING = 1e-6
"""Nats: what float32 leaves of a KL that is 0."""


@dataclass(frozen=True)
class Resampling:
    """How every interval of one report is made.

    Attributes:
        groups: (n,) unit of each prompt. n_boot: resamples. level: coverage. seed: of the draw.
    """

    groups: Int[np.ndarray, " n"]
    n_boot: int = 2000
    level: float = 0.95
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """As the functions of `engine.stats.means` take them."""
        return {"groups": self.groups, "n_boot": self.n_boot, "level": self.level, "seed": self.seed}

    def means(self, values: Float[np.ndarray, "*shape n"]) -> Band:
        """Means over prompts; each equals `bootstrap_mean` of its row with these groups and this seed."""
        return bootstrap_means(values, **self.options)

    def mean(self, values: Float[np.ndarray, " n"]) -> Interval:
        """Mean over prompts with its interval."""
        return self.means(values).at(())

    def ratios(self, top: Float[np.ndarray, "*shape n"], bottom: Float[np.ndarray, "*shape n"]) -> Band:
        """Ratios of means over prompts with their paired intervals."""
        return bootstrap_ratios(top, bottom, **self.options)


@dataclass(frozen=True)
class Reduction:
    """How much less a mapped patch disturbs the target than the raw one, on one set of prompts.

    Attributes:
        delta: KL_raw − KL_mapped, nats. drop: 100·delta/KL_raw, None where it has no meaning.
        reason: why drop is None, else "".
    """

    delta: Interval
    drop: Interval | None
    reason: str = ""


def best_alpha(kl: Float[np.ndarray, "alphas n"], alphas: Sequence[float], rounding: float = ROUNDING) -> int:
    """Index of the amplitude with the smallest mean KL; give it the train prompts.

    Amplitudes whose means are within `rounding` nats of the smallest can't be told apart; among these the
    one nearest to 1 is taken (behind a final norm, where only the direction counts, that is all of them).

    Raises:
        AnalysisError: no amplitudes, no prompts, or values that are not finite.
    """
    values = np.asarray(kl, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or len(alphas) != len(values) or not np.isfinite(values).all():
        raise AnalysisError(
            "The amplitude cannot be chosen.",
            expected="finite KLs of shape (amplitudes, prompts), at least one of each",
            given=f"{len(alphas)} amplitudes, {values.shape}, {int((~np.isfinite(values)).sum())} not finite",
            next_step="Run the experiment on a train split with prompts.",
        )
    means = values.mean(axis=1)
    far = np.abs(np.asarray(alphas, dtype=np.float64) - 1.0)
    return int(np.where(means <= means.min() + rounding, far, np.inf).argmin())


def reduction(
    kl_raw: Float[np.ndarray, " n"],
    kl_mapped: Float[np.ndarray, " n"],
    floor: float,
    how: Resampling,
    noise: float = 0.0,
) -> Reduction:
    """ΔKL and drop% with paired intervals.

    Args:
        floor: nats; a mean KL_raw up to this can't be told from no patch at all, and has no share to drop.
        noise: nats of measured rounding noise; nor has a KL_raw that isn't shown to exceed it.
    """
    return reductions(np.asarray(kl_raw)[None], np.asarray(kl_mapped)[None], floor, how, noise)[0]


def reductions(
    kl_raw: Float[np.ndarray, "alphas n"],
    kl_mapped: Float[np.ndarray, "alphas n"],
    floor: float,
    how: Resampling,
    noise: float = 0.0,
    means: Band | None = None,
) -> list[Reduction]:
    """`reduction` at every amplitude, on the same draws; `means`: those of `kl_raw`, where they are known."""
    raw, mapped = np.asarray(kl_raw, dtype=np.float64), np.asarray(kl_mapped, dtype=np.float64)
    deltas = how.means(raw - mapped)
    lows = (means or how.means(raw)).low if noise else np.full(len(raw), np.inf)
    reasons = _undefined(raw, lows, floor, how, noise)
    defined = [row for row, reason in enumerate(reasons) if not reason]
    drops = how.ratios(100 * (raw - mapped)[defined], raw[defined]) if defined else None
    told = {row: drops.at((number,)) for number, row in enumerate(defined) if drops is not None}
    return [Reduction(deltas.at((row,)), told.get(row), reason) for row, reason in enumerate(reasons)]


def _undefined(raw: np.ndarray, lows: np.ndarray, floor: float, how: Resampling, noise: float) -> list[str]:
    """Why there is no share of KL_raw to drop, at every amplitude; "" where there is.

    Args:
        lows: lower ends of the intervals of KL_raw.
    """
    reasons = []
    for own, low in zip(raw, lows, strict=True):
        reason = ""
        if own.mean() <= floor:
            reason = f"KL_raw is {max(own.mean(), 0.0):.1g} nats, within the self-patch floor of {floor:.0e}"
            reason = reason.replace("e-0", "e-")
        elif low <= noise and not exceed(own, noise, groups=how.groups, level=how.level):
            begins = f"{max(low, 0.0):.1g} nats, within rounding noise of {noise:.1g}"
            reason = f"the interval of KL_raw begins at {begins}"
        reasons.append(reason)
    return reasons


def cosines(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Cosine of each pair of rows; NaN where one has no length."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), lengths, out=np.full(len(a), np.nan), where=lengths > 0)


@dataclass(frozen=True)
class Correlation:
    """Spearman's and Pearson's correlation of two per-prompt values; None with a reason if undefined."""

    spearman: Interval | None
    pearson: Interval | None
    n: int
    reason: str = ""


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], how: Resampling) -> Correlation:
    """Both correlations with bootstrap intervals; prompts where either value is NaN are left out.

    A resample is a vector of counts w: moments and mid-ranks are taken under w (a tie of total weight t
    behind weight c has rank c + (t + 1)/2), which equals repeating each prompt w times.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    groups = np.asarray(how.groups)[keep]
    unit = np.unique(groups).size
    if unit < 4:
        return Correlation(None, None, x.size, f"{unit} prompts or pairs are too few to correlate")
    if _constant(x) or _constant(y):
        return Correlation(None, None, x.size, "one of the two is the same for every prompt")
    weights = np.vstack([np.ones(x.size), resample_weights(x.size, how.n_boot, how.seed, groups)])
    found = []
    for a, b in ((weighted_ranks(x, weights), weighted_ranks(y, weights)), (x, y)):
        draws = weighted_pearson(a, b, weights)
        found.append(band(np.array(draws[0]), draws[1:], how.level, METHOD).at(()))
    return Correlation(found[0], found[1], x.size)


def weighted_ranks(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]
) -> Float[np.ndarray, "b n"]:
    """Mid-rank of each value when it is repeated `weights` times, for each row of weights."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    total = np.add.reduceat(weights[:, np.argsort(which, kind="stable")], starts, axis=1)
    ranks = np.cumsum(total, axis=1) - total + (total + 1) / 2
    return np.asarray(ranks[:, which])


def weighted_pearson(
    a: Float[np.ndarray, "*b n"], b: Float[np.ndarray, "*b n"], weights: Float[np.ndarray, "b n"]
) -> Float[np.ndarray, " b"]:
    """Pearson's correlation under each row of weights; NaN where one side doesn't vary."""
    size = weights.sum(axis=1)

    def centred(v: Array) -> Array:
        return np.asarray(v - ((weights * v).sum(axis=1) / size)[:, None])

    left, right = centred(a), centred(b)
    top = (weights * left * right).sum(axis=1)
    bottom = np.sqrt((weights * left**2).sum(axis=1) * (weights * right**2).sum(axis=1))
    return np.divide(top, bottom, out=np.full(len(weights), np.nan), where=bottom > 0)


def _constant(values: Array) -> bool:
    return float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max(initial=0.0))


def shuffled_pairs(
    groups: Int[np.ndarray, " n"], roles: Sequence[object] | NDArray[Any], seed: int
) -> Int[np.ndarray, " n"]:
    """Wrong partners for paired rows: whole groups change places, every row keeps its role.

    Row i of the source is to be paired with row `shuffled_pairs(...)[i]` of the target. Groups are permuted
    among those with the same roles (a pair in two languages among such pairs), and within a new group the
    row of the same role is taken, so that only who belongs to whom is destroyed.

    Args:
        groups: group of each row. roles: e.g. its language.

    Raises:
        AnalysisError: no two groups have the same roles: nothing can be exchanged.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for row, group in enumerate(np.asarray(groups).tolist()):
        members[group].append(row)
    alike: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for rows in members.values():
        ordered = sorted(rows, key=lambda row: (str(roles[row]), row))
        alike[tuple(str(roles[row]) for row in ordered)].append(ordered)
    if max(len(sets) for sets in alike.values()) < 2:
        raise AnalysisError(
            "Pairs can't be permuted: no two of them have the same languages.",
            expected="at least two prompts (or pairs) that are alike",
            given=f"{len(members)}, all different",
        )
    rng = np.random.default_rng(seed)
    partner = np.arange(len(groups))
    for sets in alike.values():
        for own, other in zip(sets, rng.permutation(len(sets)), strict=True):
            partner[own] = sets[other]
    return partner


def row_space(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d r"]:
    """Column-orthonormal basis of what the rows span; directions that are only rounding are left out."""
    _, sizes, vectors = np.linalg.svd(np.asarray(rows, dtype=np.float64), full_matrices=False)
    limit = max(np.shape(rows)) * np.finfo(np.float64).eps * sizes.max(initial=0.0)
    return np.asarray(vectors[sizes > limit].T)


@dataclass(frozen=True)
class RandomRotation:
    """A Haar-random rotation of a subspace around a point: μ + (v − μ) B R Bᵀ.

    Composed with a map whose output lies in the subspace it keeps all the map's singular values and destroys
    its directions. What lies outside the subspace is dropped.

    Attributes:
        centre: (d,). basis: (d, r) column-orthonormal. rotation: (r, r) orthogonal.
    """

    centre: Array
    basis: Array
    rotation: Array

    @classmethod
    def of(cls, centre: Array, basis: Float[np.ndarray, "d r"], seed: int) -> RandomRotation:
        """Draws R uniformly (QR of a Gaussian with the signs of R's diagonal taken out; Mezzadri 2007)."""
        size = basis.shape[1]
        q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
        return cls(centre, basis, q * np.where(np.diag(r) < 0, -1.0, 1.0))

    def apply(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """The rotated rows."""
        return np.asarray(self.centre + (rows - self.centre) @ self.basis @ self.rotation @ self.basis.T)
