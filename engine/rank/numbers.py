"""How many dimensions carry an effect: figures over rank k and amplitude α, and amplitudes of equal KL.

KLs are per prompt, in nats; the last axis is always the prompts'. Everything that is chosen is chosen on the
prompts handed in, so the caller keeps train and validation apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from engine.errors import AnalysisError
from engine.stats.means import bootstrap_ratios
from engine.stats.uncertainty import Groups

Array = NDArray[np.float64]

ENERGY = 0.99
"""Share of the squared size that the leading directions are counted up to."""


def rank_grid(full: int) -> tuple[int, ...]:
    """Ranks to try: 1 to 8, then doubling from 16, and `full` itself."""
    if full < 1:
        raise AnalysisError("There is no rank to sweep.", expected="a rank of 1 or more", given=full)
    doubling = [16 * 2**i for i in range(full.bit_length())]
    return tuple(sorted({k for k in (*range(1, 9), *doubling) if k < full} | {full}))


@dataclass(frozen=True)
class Directions:
    """Leading directions of some rows.

    Attributes:
        basis: (d, r) column-orthonormal, in descending order of size.
        sigma: (r,) singular values of the rows.
    """

    basis: Float[np.ndarray, "d r"]
    sigma: Float[np.ndarray, " r"]

    def needed(self, share: float = ENERGY) -> int:
        """How many leading directions hold this share of the rows' squared size."""
        return needed_for(self.sigma, share)


def needed_for(sigma: Float[np.ndarray, " r"], share: float = ENERGY) -> int:
    """How many leading singular values hold this share of the sum of squares; 0 without any."""
    held = np.cumsum(np.square(sigma))
    return int(np.searchsorted(held, share * held[-1]) + 1) if held.size and held[-1] > 0 else 0


def leading_directions(rows: Float[np.ndarray, "n d"]) -> Directions:
    """Right singular vectors of the rows as they are, not centred: a common offset is a direction too.

    Directions whose singular value is below max(n, d)·2.2e-16 of the largest are left out; rows that are all
    zero have none.
    """
    _, sigma, right = np.linalg.svd(np.asarray(rows, dtype=np.float64), full_matrices=False)
    keep = sigma > max(rows.shape) * np.finfo(np.float64).eps * sigma.max(initial=0.0)
    return Directions(right[keep].T, sigma[keep])


def sign_flipped_spectra(
    rows: Float[np.ndarray, "n d"], draws: int, seed: int
) -> Float[np.ndarray, "draws r"]:
    """Null of a spectrum: singular values after every entry got a random sign (draws, min(n, d)).

    Each entry keeps its size, what entries have in common goes (Hong, Sheng & Dobriban 2020).
    """
    rng, wide = np.random.default_rng(seed), rows.shape[0] < rows.shape[1]
    found = np.empty((draws, min(rows.shape)))
    for draw in range(draws):
        flipped = rows * rng.choice((-1.0, 1.0), size=rows.shape)
        gram = flipped @ flipped.T if wide else flipped.T @ flipped
        found[draw] = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return found


def random_basis(d: int, k: int, seed: int) -> Float[np.ndarray, "d k"]:
    """Uniformly random column-orthonormal (d, k); its first columns are a uniformly random smaller one."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, min(k, d))))
    return basis


def partial_sums(
    coordinates: Float[np.ndarray, "n r"], directions: Float[np.ndarray, "r d"], ks: Sequence[int]
) -> Iterator[Float[np.ndarray, "n d"]]:
    """Σ_{i≤k} c_i b_i for each k, ascending; what k + 1 adds to k is one rank-one term.

    The array yielded is the same one each time: use it before asking for the next.
    """
    total, before = np.zeros((coordinates.shape[0], directions.shape[1])), 0
    for k in ks:
        total += coordinates[:, before:k] @ directions[before:k]
        before = k
        yield total


def best_amplitudes(kl: Float[np.ndarray, "k a n"]) -> Int[np.ndarray, " k"]:
    """For each rank the index of the amplitude with the smallest mean KL; the first one on a tie."""
    return np.asarray(kl.mean(axis=-1).argmin(axis=1))


@dataclass(frozen=True)
class Sufficient:
    """The smallest rank that does as well as the best, within one standard error.

    Attributes:
        index: of that rank; None when no rank does.
        gap: (k,) how far each rank is behind, as a share of `unit`. se: (k,) standard error of the gap.
    """

    index: int | None
    gap: Float[np.ndarray, " k"]
    se: Float[np.ndarray, " k"]


def smallest_sufficient(
    loss: Float[np.ndarray, "k n"],
    best: Float[np.ndarray, " n"],
    unit: Float[np.ndarray, " n"],
    *,
    groups: Groups = None,
    n_boot: int = 2000,
    seed: int = 0,
    floor: float = 0.0,
) -> Sufficient:
    """One-standard-error rule (Breiman et al. 1984, §3.4.3) on paired differences.

    gap_k = Σ(loss_k − best) / Σ unit over the prompts; the first k with gap_k ≤ max(SE(gap_k), floor). The
    standard error is that of the difference: the same prompts are behind both losses, and what they share
    says nothing about k.

    Args:
        loss: (k, n), smaller is better, k ascending. best: (n,) the loss to come up to.
        unit: (n,) what a loss is counted in, e.g. KL_raw.
        floor: gap that counts as none, for rounding.
    """
    found = bootstrap_ratios(loss - best, unit, groups=groups, n_boot=n_boot, seed=seed)
    enough = np.flatnonzero(found.estimate <= np.maximum(found.se, floor))
    return Sufficient(int(enough[0]) if enough.size else None, found.estimate, found.se)


def equal_kl_amplitude(
    alphas: Float[np.ndarray, " a"], kl: Float[np.ndarray, " a"], target: float
) -> float | None:
    """The smallest amplitude at which the KL of an intervention reaches `target`.

    The curve runs through (0, 0) and the points given, is made non-decreasing by its running maximum, and is
    interpolated in √KL, which is linear in a small α, by a monotone cubic (Fritsch & Butland 1984).

    Args:
        alphas: (a,) positive, ascending. kl: (a,) mean KL there, nats. target: nats, positive.

    Returns:
        The amplitude; None when the curve stays below `target` on the whole grid.
    """
    grid = np.concatenate([[0.0], np.asarray(alphas, dtype=np.float64)])
    if grid.size < 2 or not (np.diff(grid) > 0).all() or not target > 0:
        raise AnalysisError(
            "An amplitude of equal KL needs a curve over positive amplitudes and a positive KL.",
            expected="alphas > 0, ascending, and target > 0",
            given=f"alphas {alphas}, target {target}",
        )
    height = np.sqrt(np.maximum.accumulate(np.concatenate([[0.0], np.maximum(kl, 0.0)])))
    wanted = float(np.sqrt(target))
    above = np.flatnonzero(height >= wanted)
    if not above.size:
        return None
    end = int(above[0])
    curve = PchipInterpolator(grid, height)
    if curve(grid[end]) <= wanted:  # the value of a grid point itself, which the cubic may miss by rounding
        return float(grid[end])
    return float(brentq(lambda at: float(curve(at)) - wanted, grid[end - 1], grid[end], xtol=1e-12))
