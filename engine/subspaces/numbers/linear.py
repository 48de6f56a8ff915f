"""Bases from matrices, with ranks decided by one stated tolerance.

A direction counts when its singular value is above `RANK_TOLERANCE` times the Frobenius norm of the matrix
it comes from, before anything was projected out or centred away. A zero matrix has rank 0, a (d, 0) basis.
Bases are column-orthonormal (d, r), most important direction first, largest entry of a column positive.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]

# Through Gram matrices squared singular values carry rounding of about 1e-15 of the squared norm, so that
# singular values down to some 1e-7 of it mean something.
RANK_TOLERANCE = 1e-6


def signed(basis: Array) -> Array:
    """Columns turned so that their largest entry is positive."""
    if not basis.size:
        return basis
    largest = np.abs(basis).argmax(axis=0)
    return basis * np.sign(basis[largest, np.arange(basis.shape[1])])


def top_of_gram(gram: Float[np.ndarray, "d d"], k: int, squared_norm: float | None = None) -> Array:
    """Leading eigenvectors of M Mᵀ, i.e. leading left singular vectors of M.

    Args:
        squared_norm: ‖M‖_F² that the tolerance refers to; by default that of this Gram matrix, its trace.
    """
    d = len(gram)
    width = min(k, d)
    floor = RANK_TOLERANCE**2 * (float(np.trace(gram)) if squared_norm is None else squared_norm)
    if width < 1 or not gram.any():
        return np.zeros((d, 0))
    values, vectors = linalg.eigh(gram, subset_by_index=(d - width, d - 1))
    return signed(vectors[:, ::-1][:, values[::-1] > floor])


def left_basis(matrix: Float[np.ndarray, "d m"], k: int, norm: float | None = None) -> Array:
    """Leading left singular vectors of (d, m): by SVD where it is thin, by its Gram matrix otherwise.

    Args:
        norm: Frobenius norm that the tolerance refers to; by default the matrix's own.
    """
    d, m = matrix.shape
    norm = float(np.linalg.norm(matrix)) if norm is None else norm
    if 4 * m > d:
        return top_of_gram(matrix @ matrix.T, k, norm**2)
    u, sigma, _ = np.linalg.svd(matrix, full_matrices=False)
    return signed(u[:, :k][:, sigma[:k] > RANK_TOLERANCE * norm])


def pca(rows: Float[np.ndarray, "n d"], k: int, weights: Float[np.ndarray, " n"] | None = None) -> Array:
    """Leading principal directions of centred rows, after multiplying them with the root of any weights.

    The tolerance refers to the rows before centring.
    """
    if not len(rows):
        return np.zeros((rows.shape[1], 0))
    scaled = rows if weights is None else rows * np.sqrt(weights)[:, None]
    norm, mean = float(np.linalg.norm(scaled)), scaled.mean(axis=0)
    if weights is None:
        return left_basis((rows - mean).T, k, norm)
    scaled -= mean
    return left_basis(scaled.T, k, norm)


def left_of_product(
    left: Float[np.ndarray, "d m"],
    right: Float[np.ndarray, "m d"],
    k: int,
    gain: Float[np.ndarray, " d"] | None = None,
) -> Array:
    """Leading left singular vectors of left · right · diag(gain).

    With m < d through QR of both thin factors and an m × m core; else the product is the smaller matrix.
    """
    d, m = left.shape
    if m >= d:
        product = left @ right
        return left_basis(product if gain is None else product * gain, k)
    right = right if gain is None else right * gain
    q, r = np.linalg.qr(left)
    core = r @ np.linalg.qr(right.T)[1].T
    return signed(q @ left_basis(core, k))


def orthonormal(columns: Float[np.ndarray, "d m"]) -> Array:
    """Basis of the span of columns whose natural size is 1 (projected unit vectors)."""
    u, sigma, _ = np.linalg.svd(columns, full_matrices=False)
    return signed(u[:, sigma > RANK_TOLERANCE])


def union(*bases: Float[np.ndarray, "d r"]) -> Array:
    """Basis of the span of all of them together."""
    return orthonormal(np.concatenate(bases, axis=1))


def project_away(basis: Float[np.ndarray, "d r"], forbidden: Float[np.ndarray, "d f"]) -> Array:
    """Basis of what is left of a subspace outside another one."""
    return orthonormal(basis - forbidden @ (forbidden.T @ basis))


def gram_outside(gram: Float[np.ndarray, "d d"], forbidden: Float[np.ndarray, "d f"]) -> Array:
    """(I − QQᵀ) G (I − QQᵀ) = G − (QBᵀ + BQᵀ) with B = GQ − ½ Q(QᵀGQ); no projector is formed."""
    inner = gram @ forbidden
    inner -= forbidden @ (forbidden.T @ inner) / 2
    twice = forbidden @ inner.T
    return gram - twice - twice.T


def principal_vectors(a: Float[np.ndarray, "d p"], b: Float[np.ndarray, "d q"]) -> tuple[Array, Array, Array]:
    """Principal vectors in a and in b (d, m), and their cosines (m,), descending (Björck & Golub 1973)."""
    u, cosines, vt = np.linalg.svd(a.T @ b, full_matrices=False)
    return a @ u, b @ vt.T, np.minimum(cosines, 1.0)
