"""How Z changes from block to block, and whether other weights read it, each with its null."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.geometry.z import adjacent_minus_distant, effective_rank, phase_boundary
from engine.stats.scales import between
from engine.stats.uncertainty import energy_p_values, holm, random_subspace_moments

Array = NDArray[np.float64]


def variation(ranks: Float[np.ndarray, "*l h"]) -> Float[np.ndarray, "*l"]:
    """Coefficient of variation over heads (last axis): standard deviation (n − 1) over mean."""
    mean = ranks.mean(axis=-1)
    spread = ranks.std(axis=-1, ddof=1) if ranks.shape[-1] > 1 else np.zeros_like(mean)
    return np.divide(spread, mean, out=np.full_like(mean, np.nan), where=mean > 0)


def random_effective_ranks(d: int, d_h: int, *, draws: int = 200, seed: int = 0) -> Float[np.ndarray, " b"]:
    """Effective rank of head kernels of independent Gaussian W_Q, W_K (d_h, d): what no training gives.

    Only the triangular factors matter (W_Qᵀ = Q_q R_q), and those of a Gaussian matrix are drawn directly:
    χ(d − i) on the diagonal, standard normal above it (Bartlett 1933).
    """
    rng = np.random.default_rng(seed)
    q, k = (triangular_draw(rng, d, d_h, draws) for _ in range(2))
    return effective_rank(np.linalg.svd(q @ k.transpose(0, 2, 1), compute_uv=False))


def triangular_draw(rng: np.random.Generator, rows: int, columns: int, draws: int) -> Array:
    """R of the QR decomposition of standard Gaussian (rows, columns) matrices, (draws, min, columns)."""
    size = min(rows, columns)
    above = np.triu(rng.standard_normal((draws, size, columns)), 1)
    index = np.arange(size)
    above[:, index, index] = np.sqrt(rng.chisquare(rows - index, size=(draws, size)))
    return above


def grassmann_p(similarity: Float[np.ndarray, "*s"], d: int, k: int) -> Float[np.ndarray, "*s"]:
    """P(two unrelated k-subspaces of R^d are at least this similar), from exact moments and a Beta tail."""
    mean, variance = random_subspace_moments(d, k, 1.0, 1.0 / k)
    shape = np.shape(similarity)
    return energy_p_values(np.asarray(similarity), np.full(shape, mean), np.full(shape, variance))


def resemblance_p(
    reference: Float[np.ndarray, " d"], shares: Float[np.ndarray, "d s"], similarity: Float[np.ndarray, " s"]
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """P(k-subspaces unrelated to a reference are at least this similar to it), under two nulls.

    Args:
        reference: its share of every coordinate, P_ii, which add up to k. shares: each subspace's.
        similarity: mean squared cosine of the principal angles to the reference.

    Returns:
        p against uniformly random subspaces (`grassmann_p`), and against those that keep the coordinates'
        shares (`engine.stats.scales`): blocks of one model read the same few large coordinates.
    """
    own, each = (np.asarray(values, dtype=np.float64) for values in (reference, shares))
    plain = grassmann_p(similarity, len(own), round(float(own.sum())))
    return plain, between(own, each).p(np.asarray(similarity, dtype=np.float64))


@dataclass(frozen=True)
class LayerStructure:
    """Whether the order of the blocks shows in the similarity of their subspaces.

    Attributes:
        gap: mean similarity of neighbours minus that of blocks at least half the depth apart.
        p_gap: share of random orders of the blocks with at least this gap (one-sided).
        boundary: the block ℓ that is less like ℓ + 1 than ℓ − 1 was like ℓ, by most. drop: by how much.
        least: the block ℓ whose similarity to ℓ + 1 is smallest. at_least: that similarity.
        unrelated: blocks ℓ whose Z is not told from a random subspace by ℓ + 1's (Holm over neighbours).
    """

    gap: float
    p_gap: float
    boundary: int
    drop: float
    least: int
    at_least: float
    unrelated: tuple[int, ...]
    blocks: int


def layer_structure(
    similarity: Float[np.ndarray, "l l"], d: int, k: int, *, draws: int = 999, seed: int = 0
) -> LayerStructure:
    """Adjacent minus distant with its permutation null, and the least similar neighbours.

    Raises:
        AnalysisError: fewer than three blocks.
    """
    layers = similarity.shape[0]
    gap = adjacent_minus_distant(similarity)
    first, second = np.triu_indices(layers, 1)
    near, far = second - first == 1, second - first >= max(2, layers // 2)
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(layers) for _ in range(draws)])
    shuffled = similarity[order[:, first], order[:, second]]
    found = shuffled[:, near].mean(axis=1) - shuffled[:, far].mean(axis=1)
    neighbours = np.diagonal(similarity, 1)
    unrelated = np.flatnonzero(holm(grassmann_p(neighbours, d, k)) >= 0.05)
    least = int(neighbours.argmin())
    return LayerStructure(
        gap,
        float((1 + (found >= gap - 1e-12).sum()) / (draws + 1)),
        *phase_boundary(similarity),
        least,
        float(neighbours[least]),
        tuple(int(i) for i in unrelated),
        layers,
    )


@dataclass(frozen=True)
class Alignment:
    """Energy of weight rows in subspaces, against random subspaces.

    Attributes:
        ratio: energy fraction over k/d; 1 by chance, with standard deviation `sd`.
        p: one-sided p of at least this fraction in a random k-subspace (exact moments, Beta tail).
        p_low: one-sided p of at most this fraction.
    """

    ratio: Array
    sd: Array
    p: Array
    p_low: Array


def weight_alignment(
    energy: Float[np.ndarray, " s"],
    total: Float[np.ndarray, " s"],
    total_of_square: Float[np.ndarray, " s"],
    d: int,
    k: int,
) -> Alignment:
    """Energy of a matrix M's rows inside k-subspaces, over k/d, with its exact null.

    Args:
        energy: ‖M Z‖_F². total: ‖M‖_F² = tr MᵀM. total_of_square: ‖MᵀM‖_F².
        d, k: width of the rows, dimension of Z.

    Returns:
        One entry for each given energy; NaN where the total is NaN or zero.
    """
    known = np.isfinite(total) & (total > 0)
    safe = np.where(known, total, 1.0)
    fraction = np.where(known, energy / safe, np.nan)
    shared = np.where(known, total_of_square / safe**2, 1.0)
    moments = np.array([random_subspace_moments(d, k, 1.0, float(s)) for s in shared]).reshape(-1, 2)
    p = energy_p_values(fraction, moments[:, 0], moments[:, 1])
    return Alignment(fraction / (k / d), np.sqrt(moments[:, 1]) / (k / d), p, 1.0 - p)


def energy_in(
    basis: Float[np.ndarray, "d k"],
    gram: Float[np.ndarray, "m m"],
    frame: Float[np.ndarray, "d m"] | None = None,
) -> Float[np.ndarray, " k"]:
    """‖M z‖² of a matrix M for every column z, from a small Gram matrix; their sum is ‖M Z‖_F².

    Args:
        basis: directions (d, k); several bases may stand side by side.
        gram: (M F)ᵀ(M F), or MᵀM where `frame` is None.
        frame: F (d, m), any columns whose span holds every direction.

    Raises:
        AnalysisError: a direction outside the span of the frame.
    """
    inside: Array = np.asarray(basis, dtype=np.float64)
    if frame is not None:
        wide = np.asarray(frame, dtype=np.float64)
        inside = np.asarray(np.linalg.lstsq(wide, inside, rcond=1e-6)[0], dtype=np.float64)
        left = float(np.abs(wide @ inside - basis).max(initial=0.0))
        if left > 1e-3:  # float32 bases leave 1e-6
            raise AnalysisError(
                "This subspace is not inside the frame that was kept.",
                expected="Z spanned by what the layer's own keys read",
                given=f"{left:.2g} of it outside",
                next_step="Use a basis made of the same layer's head kernels.",
            )
    found: Array = (inside * (np.asarray(gram, dtype=np.float64) @ inside)).sum(axis=0)
    return found
