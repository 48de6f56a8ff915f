"""Did a fit of lengthscales find anything? Its kernel on problems that it never saw.

A fit of pure noise keeps a few dimensions too, for they lower the objective of its own sample, and its
lengthscales then form two groups like those of a real finding. Whether the kernel tells which problems of the
two languages belong together can only be asked of other problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.ard.fit import ArdFit, Clouds, check_clouds, paired_clouds, subsample
from engine.errors import AnalysisError
from engine.stats.permuted import smallest_p

Array = NDArray[np.float64]

LEAST = 4
"""Problems of which the true pairing can be told from a random one at p < 0.05: 4! = 24 orders."""
DRAWS = 9999
"""Random pairings: their smallest p stays below 0.05 when Holm's method multiplies it by 499 blocks."""
ROUNDING = 1e-7
"""Mean kernels closer than this are equal: distances are float32."""


@dataclass(frozen=True)
class HeldOut:
    """What fitted lengthscales do on other problems.

    Attributes:
        same, different: mean MMD² as in `ArdFit`, `different` whatever the objective was.
        p: one-sided permutation p that the kernel pairs the problems of the two languages: the mean kernel
            between the two clouds of each problem, against problems paired at random.
        p_within: the same with pairs permuted within groups only; None without groups of two or more.
        n: problems.
        least_p: the smallest value of the p that counts (`engine.ard.spectrum.judged`) to expect: problems of
            one group each can't be permuted at all.
    """

    same: float
    different: float
    p: float
    p_within: float | None
    n: int
    least_p: float


def hold_out(
    fit: ArdFit,
    source: Clouds,
    target: Clouds,
    *,
    groups: Sequence[object] | None = None,
    draws: int = DRAWS,
    max_tokens: int = 400,
    seed: int = 0,
) -> HeldOut:
    """Judges a fit on other problems, standardised as the fitted ones were.

    Args:
        source, target: as for `fit_ard`; max_tokens too.
        groups: (n,) kind of each problem; telling the kinds apart is then not enough.

    Raises:
        AnalysisError: clouds of other widths or fewer than 4 problems.
    """
    check_clouds(source, target, fit.objective, fit.penalty)
    n, rng = len(source), np.random.default_rng(seed)
    if n < LEAST:
        raise AnalysisError("Too few held-out problems.", expected=f"{LEAST} or more", given=n)
    inverse = np.exp(-fit.log_lengthscales) / fit.scale
    clouds = [
        ((subsample(cloud, max_tokens, rng) - fit.center) * inverse).astype(np.float32)
        for cloud in (*source, *target)
    ]
    across = np.array([[mean_kernel(clouds[i], clouds[n + j]) for j in range(n)] for i in range(n)])
    own = np.array([mean_kernel(cloud) for cloud in clouds])
    same, different = paired_clouds(n)
    kinds = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(kinds) if kinds is not None else np.array([n])
    several, usable = len(sizes) > 1, len(sizes) > 1 and sizes.max() > 1
    return HeldOut(
        same=float(np.mean([own[a] + own[b] - 2 * across[a, b - n] for a, b in same])),
        different=float(
            np.mean([own[a] + own[b] - 2 * mean_kernel(clouds[a], clouds[b]) for a, b in different])
        ),
        p=pairing_p(across, np.zeros(n, dtype=np.intp), draws, rng),
        p_within=pairing_p(across, kinds, draws, rng) if usable and kinds is not None else None,
        n=n,
        least_p=smallest_p(draws, n, kinds if several else None),
    )


def mean_kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"] | None = None) -> float:
    """Mean of exp(−½‖x_i − y_j‖²); within one cloud over different tokens."""
    other = x if y is None else y
    half = 0.5 * ((x**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)) - x @ other.T
    values = np.exp(-np.maximum(half, 0.0))
    if y is not None:
        return float(values.mean(dtype=np.float64))
    n = len(x)
    return float((values.sum(dtype=np.float64) - np.trace(values)) / (n * (n - 1)))


def pairing_p(
    kernels: Float[np.ndarray, "n n"], groups: NDArray[np.intp], draws: int, rng: np.random.Generator
) -> float:
    """Rank of the true pairing's mean kernel among random pairings within groups."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rows = np.arange(len(kernels))
    orders = np.empty((draws, len(rows)), dtype=np.intp)
    for own in members:
        orders[:, own] = rng.permuted(np.tile(own, (draws, 1)), axis=1)
    found = kernels[rows, orders].mean(axis=1)
    true = float(np.diag(kernels).mean())
    return float((1 + (found >= true - ROUNDING).sum()) / (1 + draws))
