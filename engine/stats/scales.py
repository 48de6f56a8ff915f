"""The energy of a subspace against subspaces that keep the scales of its coordinates.

A few coordinates of a real stream are 10 to 20 times larger than the others, and rows of weights are uneven.
Two subspaces that only share this share more energy than uniformly random ones do. Write S for a second
moment of trace 1, P = BBᵀ for the projector on a k-subspace and p_i = P_ii for the coordinates' shares in it,
so that the energy in B is Σ_ij S_ij P_ij.

**Hypothesis.** S and B know of each other's coordinates no more than how large they are: flipping the signs
of any coordinates of B leaves the joint law as it is. Then the mean of the energy is exactly Σ_i S_ii p_i,
and its variance 2 Σ_{i≠j} S_ij² E P_ij². The flips alone would put the subspace's own P_ij² there; here it is
their expectation given the shares, V_ij = a_i a_j with rows that add up as those of a projector do,
Σ_{j≠i} V_ij = p_i(1 − p_i): one product for all subspaces, and right for uniformly random ones.

**Tails.** Above: the gamma law with these two moments shifted to the mean (Pearson's type III), its shape
that of the energy with the shares left free. Below: the normal law where it is the larger one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
ROUNDS = 4
"""Rounds of the fixed point for V; the total is exact after any number."""


def spread(shares: Float[np.ndarray, "d *c"]) -> Float[np.ndarray, "d *c"]:
    """a with Σ_{j≠i} a_i a_j = p_i(1 − p_i), the expected P_ij² of projectors with this diagonal p.

    By rounds a_i ← p_i(1 − p_i)/(Σa − a_i), then scaled so that the total is exact. Zero for subspaces that
    are spanned by coordinate axes.
    """
    left = np.maximum(shares * (1 - shares), 0)
    rank = np.maximum(shares.sum(axis=0), np.finfo(shares.dtype).tiny)
    found: Float[np.ndarray, "d *c"] = shares / np.sqrt(rank)
    for _ in range(ROUNDS):
        rest = found.sum(axis=0) - found
        found = np.divide(left, rest, out=np.zeros_like(left), where=rest > 0)
    pairs = found.sum(axis=0) ** 2 - (found * found).sum(axis=0)
    scale = np.divide(left.sum(axis=0), pairs, out=np.zeros_like(pairs), where=pairs > 0)
    return found * np.sqrt(scale)


@dataclass(frozen=True)
class ScaleNull:
    """Energy in subspaces that keep their coordinates' shares: mean, variance, shape of the upper tail."""

    mean: Array
    variance: Array
    shape: Array

    def z(self, fraction: Float[np.ndarray, "*c"]) -> Float[np.ndarray, "*c"]:
        """(fraction − mean)/sd; 0 where nothing varies."""
        varies = self._varies
        return np.where(varies, (fraction - self.mean) / np.sqrt(np.where(varies, self.variance, 1.0)), 0.0)

    def p(self, fraction: Float[np.ndarray, "*c"]) -> Float[np.ndarray, "*c"]:
        """One-sided p of at least this energy; 1 where nothing varies."""
        root = np.sqrt(np.where(self._varies, self.shape, 1.0))
        tail = special.gammaincc(root * root, np.maximum(root * (root + self.z(fraction)), 0.0))
        return np.where(np.isnan(fraction), np.nan, np.where(self._varies, tail, 1.0))

    def p_low(self, fraction: Float[np.ndarray, "*c"]) -> Float[np.ndarray, "*c"]:
        """One-sided p of at most this energy; 1 where nothing varies."""
        root, z = np.sqrt(np.where(self._varies, self.shape, 1.0)), self.z(fraction)
        tail = special.gammainc(root * root, np.maximum(root * (root + z), 0.0))
        return np.where(
            np.isnan(fraction), np.nan, np.where(self._varies, np.maximum(special.ndtr(z), tail), 1.0)
        )

    @property
    def _varies(self) -> NDArray[np.bool_]:
        return np.asarray(self.variance > 1e-12 * self.mean * self.mean)


@dataclass(frozen=True)
class Scales:
    """What the null needs of a second moment S of trace 1.

    Attributes:
        diagonal: S_ii (d,). squares: S_ij² off the diagonal, 0 on it (d, d).
    """

    diagonal: Array
    squares: NDArray[np.floating]

    @classmethod
    def of(cls, columns: Float[np.ndarray, "d m"], dtype: type[np.floating] = np.float64) -> Scales:
        """S = C Cᵀ/‖C‖_F²; zero where C is. `dtype`: of the products, which only rounds the variance."""
        wide = np.asarray(columns, dtype=np.float64)
        energy = np.vecdot(wide, wide)
        total = float(energy.sum()) or 1.0
        scaled = (wide / np.sqrt(total)).astype(dtype)
        squares = scaled @ scaled.T
        squares *= squares
        np.fill_diagonal(squares, 0.0)
        return cls(energy / total, squares)

    def null(
        self, shares: Float[np.ndarray, "d *c"], spread_of: Float[np.ndarray, "d *c"] | None = None
    ) -> ScaleNull:
        """The null of each subspace.

        Args:
            shares: p_i = P_ii, the squared rows of a column-orthonormal basis summed; one column a subspace.
            spread_of: `spread` of the shares, where it is known already.
        """
        a = spread(shares.astype(self.squares.dtype, copy=False)) if spread_of is None else spread_of
        variance = 2 * (a * (self.squares @ a)).sum(axis=0, dtype=np.float64)
        mean = self.diagonal @ shares
        rank = np.maximum(shares.sum(axis=0), 1e-300)
        own = 2 / rank * ((self.diagonal**2) @ (shares * shares))
        all_of_it = variance + own
        shape = np.divide(mean * mean, all_of_it, out=np.ones_like(mean), where=all_of_it > 0)
        return ScaleNull(*(np.asarray(value, dtype=np.float64) for value in (mean, variance, shape)))


def between(reference: Float[np.ndarray, " d"], shares: Float[np.ndarray, "d s"]) -> ScaleNull:
    """The null of the mean squared cosine of subspaces with a reference, from shares of coordinates alone.

    S is the reference's projector over its rank; S_ij² too is replaced by what it is on average given the
    reference's shares, so that the variance is 2 Σ_{i≠j} b_i b_j a_i a_j over the rank squared.

    Args:
        reference: its P_ii. shares: each subspace's P_ii, one column each.
    """
    rank, ranks = float(reference.sum()), np.maximum(shares.sum(axis=0), 1e-300)
    both = spread(shares) * spread(reference)[:, None]
    variance = 2 * (both.sum(axis=0) ** 2 - (both * both).sum(axis=0)) / rank**2
    mean = reference @ shares / rank
    own = 2 / ranks * (((reference / rank)[:, None] * shares) ** 2).sum(axis=0)
    return ScaleNull(mean, variance, mean * mean / np.maximum(variance + own, 1e-300))


def shares_of(basis: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
    """p of the first 1, 2, … k columns of a column-orthonormal basis, one column each."""
    wide = np.asarray(basis, dtype=np.float64)
    return np.cumsum(wide * wide, axis=1)
