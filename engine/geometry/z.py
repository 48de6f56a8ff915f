"""The subspace Z of an attention layer: what its query–key kernels read from the stream.

Head kernel K_i = W_Q,iᵀ W_K,g(i), a (d, d) matrix of rank ≤ d_h. Its right singular vectors are the
directions that the head's keys read. It is the kernel at relative position 0 (rotary embedding
left out) and without biases. All bases are column-orthonormal (d, k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg

from engine.errors import AnalysisError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeadKernels:
    """Singular value decompositions of all head kernels of one layer, K_i = L_i diag(σ_i) R_iᵀ.

    Attributes:
        left: (h, d, d_h) query side. sigma: (h, d_h), descending. right: (h, d, d_h) key side.
            Columns whose singular value is zero within rounding are arbitrary orthonormal fill.
    """

    left: Array
    sigma: Array
    right: Array


def head_kernel_svd(
    w_q: Float[np.ndarray, "h d_h d"],
    w_k: Float[np.ndarray, "g d_h d"],
    *,
    input_gain: Float[np.ndarray, " d"] | None = None,
    q_gain: Float[np.ndarray, " d_h"] | None = None,
    k_gain: Float[np.ndarray, " d_h"] | None = None,
) -> HeadKernels:
    """SVD of every head's query–key kernel through its thin factors.

    W_Qᵀ = Q_q R_q and W_Kᵀ = Q_k R_k give K = Q_q (R_q R_kᵀ) Q_kᵀ, so an SVD of the d_h × d_h core is
    enough; a d × d matrix is never formed. Key heads are shared by h/g query heads each.

    Args:
        w_q, w_k: projections, heads first. float64 is used throughout.
        input_gain: gain of the norm in front of attention, folded into both sides.
        q_gain, k_gain: gains of the query and key norms (Qwen3), folded into the rows.

    Raises:
        AnalysisError: shapes that don't belong together.
    """
    h, d_h, d = w_q.shape
    g = w_k.shape[0]
    if w_k.shape[1:] != (d_h, d) or h % g:
        raise AnalysisError(
            "Query and key projections do not fit together.",
            expected="w_q (h, d_h, d) and w_k (g, d_h, d) with h a multiple of g",
            given=f"{w_q.shape} and {w_k.shape}",
        )
    if d_h > d:
        raise AnalysisError("A head is wider than the model.", expected="d_h ≤ d", given=f"{d_h} > {d}")
    queries, keys = np.asarray(w_q, dtype=np.float64), np.asarray(w_k, dtype=np.float64)
    if q_gain is not None:
        queries = queries * np.asarray(q_gain, dtype=np.float64)[:, None]
    if k_gain is not None:
        keys = keys * np.asarray(k_gain, dtype=np.float64)[:, None]
    if input_gain is not None:
        queries, keys = queries * np.asarray(input_gain), keys * np.asarray(input_gain)
    basis_k, factor_k = _thin_qr(keys.transpose(0, 2, 1))
    basis_q, factor_q = _thin_qr(queries.transpose(0, 2, 1))
    of_query = np.arange(h) // (h // g)
    u, sigma, vt = np.linalg.svd(factor_q @ factor_k[of_query].transpose(0, 2, 1))
    return HeadKernels(basis_q @ u, sigma, basis_k[of_query] @ vt.transpose(0, 2, 1))


@dataclass(frozen=True)
class KeySide:
    """Key-side singular vectors of a layer's head kernels, as coordinates of what its keys read.

    Attributes:
        factor: C (h, d_h, d_h) with R_i = W_K,g(i)ᵀ C_i, or None where that is too ill-conditioned to be
            within 1e-4 of orthonormal in float32 (dead or nearly dependent key dimensions).
        sigma: (h, d_h), descending.
    """

    factor: Array | None
    sigma: Array


def key_side(
    w_q: Float[np.ndarray, "h d_h d"],
    w_k: Float[np.ndarray, "g d_h d"],
    *,
    input_gain: Float[np.ndarray, " d"] | None = None,
) -> KeySide:
    """`head_kernel_svd` without its d-dimensional vectors: from the Gram matrices of W_Q and W_K.

    W_Kᵀ = Q R gives right singular vectors Q V = W_Kᵀ R⁻¹ V. With `input_gain` γ they are γ ⊙ W_Kᵀ C.
    """
    scale = 1.0 if input_gain is None else np.asarray(input_gain, dtype=np.float64)
    queries, keys = (np.asarray(w, dtype=np.float64) * scale for w in (w_q, w_k))
    of_query = np.arange(len(queries)) // (len(queries) // len(keys))
    upper = _triangle(keys)
    sigma, vt = np.linalg.svd(_triangle(queries) @ upper[of_query].transpose(0, 2, 1))[1:]
    try:
        factor = np.linalg.solve(upper[of_query], vt.transpose(0, 2, 1))
    except np.linalg.LinAlgError:
        return KeySide(None, sigma)
    rounded = factor.astype(np.float32).astype(np.float64)
    vectors = upper[of_query] @ rounded  # in the basis Q
    off = np.abs(vectors.transpose(0, 2, 1) @ vectors - np.eye(vt.shape[-1])).max(initial=0.0)
    return KeySide(factor if off < 1e-4 else None, sigma)


def _triangle(rows: Array) -> Array:
    """R (m, r, r) of the QR decompositions of rowsᵀ: by Cholesky, by QR where that would lose too much."""
    with np.errstate(invalid="ignore"):
        try:
            upper = np.asarray(np.linalg.cholesky(rows @ rows.transpose(0, 2, 1)).transpose(0, 2, 1))
            diagonal = np.diagonal(upper, axis1=1, axis2=2)
            if bool((diagonal.min(axis=1) > 1e-4 * diagonal.max(axis=1)).all()):
                return np.asarray(upper, dtype=np.float64)
        except np.linalg.LinAlgError:
            pass
    return np.asarray(np.linalg.qr(rows.transpose(0, 2, 1), mode="r"))


def _thin_qr(columns: Array) -> tuple[Array, Array]:
    """QR of tall matrices (m, d, r) by two Cholesky factorisations (Yamamoto et al. 2015): mostly products.

    As orthonormal as Householder's where the first pass leaves columns nearly so; Householder's where it
    doesn't (condition numbers above 1e7, missing ranks).
    """
    basis, factor = columns, np.eye(columns.shape[2])
    try:
        for again in (False, True):
            gram = basis.transpose(0, 2, 1) @ basis
            if again and not float(np.abs(gram - np.eye(gram.shape[1])).max(initial=0.0)) < 0.1:
                return np.linalg.qr(columns)
            lower = np.linalg.cholesky(gram)
            basis = basis @ np.linalg.inv(lower).transpose(0, 2, 1)
            factor = lower.transpose(0, 2, 1) @ factor
    except np.linalg.LinAlgError:
        return np.linalg.qr(columns)
    return basis, factor


def effective_rank(sigma: Float[np.ndarray, "*s r"]) -> Float[np.ndarray, "*s"]:
    """exp of the entropy of σ/Σσ (Roy & Vetterli 2007), along the last axis; 0 for a zero matrix."""
    values = np.asarray(sigma, dtype=np.float64)
    total = values.sum(axis=-1, keepdims=True)
    share = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.where(total[..., 0] > 0, np.exp(-(share * logs).sum(axis=-1)), 0.0)


def _blocks(right: Array, sigma: Array, k: int, method: str) -> Array:
    """Columns (d, m) whose leading left singular vectors are the basis."""
    h, d, r = right.shape
    alive = sigma > d * np.finfo(np.float64).eps * max(float(sigma.max(initial=0.0)), 1e-300)
    scale = np.where(alive, 1.0 if method == "blocks" else sigma, 0.0)
    width = min(k, r) if method == "blocks" else r
    scaled = right[:, :, :width] * scale[:, None, :width]
    return scaled.transpose(1, 0, 2).reshape(d, h * width)[:, alive[:, :width].ravel()]


def multi_head_basis(
    right: Float[np.ndarray, "h d r"],
    sigma: Float[np.ndarray, "h r"],
    k: int,
    method: Literal["blocks", "kernels"] = "blocks",
) -> Float[np.ndarray, "d k"]:
    """One k-dimensional key-side basis for all heads of a layer.

    Args:
        right, sigma: from `head_kernel_svd` (or any per-head right singular vectors and values).
        k: dimension.
        method: "blocks": leading k directions of the stacked orthonormal top-k blocks of all heads;
            every head counts alike, k ≤ r, and a basis for k is not part of the one for k + 1.
            "kernels": leading k eigenvectors of Σ_i K_iᵀK_i; heads count by their energy, and
            the bases are nested in k.

    Returns:
        Column-orthonormal (d, k), ordered by importance, signs fixed (largest entry positive).

    Raises:
        AnalysisError: k below 1, above d_h for "blocks", or above the rank of the kernels.
    """
    vectors, values = np.asarray(right, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if method not in ("blocks", "kernels"):
        raise AnalysisError(
            "Unknown way to join heads.", expected="'blocks' or 'kernels'", given=repr(method)
        )
    if k < 1 or (method == "blocks" and k > vectors.shape[2]):
        raise AnalysisError(
            "This k is not available.",
            expected=f"1 ≤ k ≤ d_h = {vectors.shape[2]}",
            given=f"k = {k}",
            next_step="Choose a smaller k, or method='kernels'.",
        )
    columns = _blocks(vectors, values, k, method)
    d, m = columns.shape
    wide = m > d
    inner = columns @ columns.T if wide else columns.T @ columns
    size = inner.shape[0]
    floor = max(d, m) * np.finfo(np.float64).eps
    if size < k:
        raise AnalysisError("The kernels span too few directions.", expected=f"k ≤ {size}", given=f"k = {k}")
    energy, found = linalg.eigh(inner, subset_by_index=(size - k, size - 1))
    if energy[0] <= floor * energy[-1]:
        rank = int((linalg.eigvalsh(inner) > floor * energy[-1]).sum())
        raise AnalysisError(
            "The kernels span too few directions.", expected=f"k ≤ their joint rank {rank}", given=f"k = {k}"
        )
    basis = found[:, ::-1] if wide else np.linalg.qr(columns @ (found / np.sqrt(energy))[:, ::-1])[0]
    return _signed(basis)


def key_frame(right: Float[np.ndarray, "h d r"], kv_heads: int) -> Float[np.ndarray, "d m"]:
    """Unit directions that span everything the layer's keys read, (d, kv_heads·r).

    Query heads that share a key head have right singular vectors of one common span (all d_h columns, zero
    singular values included), so the first head of every group stands for its group.
    """
    h, d, r = right.shape
    if kv_heads < 1 or h % kv_heads:
        raise AnalysisError(
            "The key heads do not divide the heads.", expected=f"a divisor of {h}", given=f"{kv_heads}"
        )
    first = np.asarray(right[:: h // kv_heads], dtype=np.float64)
    return first.transpose(1, 0, 2).reshape(d, kv_heads * r)


def multi_head_bases(
    right: Float[np.ndarray, "h d r"],
    sigma: Float[np.ndarray, "h r"],
    ks: Sequence[int],
    method: Literal["blocks", "kernels"] = "blocks",
    *,
    kv_heads: int | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> dict[int, Array]:
    """`multi_head_basis` for several k: the same bases, found in the span of the keys.

    With g < h key heads that span is g·d_h-dimensional, which makes the eigenproblems small (Llama-3-8B: 1024
    instead of 4096 columns). The nested bases of "kernels" need one eigenproblem for all k.

    Args:
        kv_heads: key heads of the layer; None takes every head's factors as its own.
        advance: told (done, total) after each basis.

    Raises:
        AnalysisError: as `multi_head_basis`; or heads of one group whose spans differ.
    """
    h, d, r = right.shape
    shared = kv_heads is not None and kv_heads < h and kv_heads * r < d
    vectors, frame = np.asarray(right, dtype=np.float64), None
    if kv_heads is not None and shared:
        frame, vectors = _in_key_span(vectors, kv_heads)
    bases: dict[int, Array] = {}
    wanted = sorted(set(ks))
    for done, k in enumerate(reversed(wanted)):
        if method == "kernels" and bases:
            bases[k] = bases[wanted[-1]][:, :k]
        else:
            bases[k] = multi_head_basis(vectors, sigma, k, method)
        if advance is not None:
            advance(done + 1, len(wanted))
    if frame is not None:
        bases = {k: _signed(frame @ basis) for k, basis in bases.items()}
    return {k: bases[k] for k in wanted}


def _in_key_span(right: Array, kv_heads: int) -> tuple[Array, Array]:
    """An orthonormal basis (d, m) of the keys' span, and all heads' right vectors in it (h, m, r)."""
    h, _, r = right.shape
    frame, coordinates = np.linalg.qr(key_frame(right, kv_heads))
    first = np.arange(h) // (h // kv_heads)
    turn = right[first * (h // kv_heads)].transpose(0, 2, 1) @ right  # from the group's first head to each
    error = float(np.abs(turn.transpose(0, 2, 1) @ turn - np.eye(r)).max(initial=0.0))
    if error > 1e-3:  # stored in float32, the deviation is 1e-6; of unrelated spans it is of order 1
        raise AnalysisError(
            "Heads of one group do not share their keys.",
            expected="right singular vectors of one span in each group",
            given=f"deviation {error:.2g} with {kv_heads} key heads",
            next_step="Leave kv_heads out.",
        )
    blocks = coordinates.reshape(-1, kv_heads, r)[:, first]
    return frame, blocks.transpose(1, 0, 2) @ turn


def _signed(basis: Array) -> Array:
    """Columns whose largest entry is positive."""
    return basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])


def random_basis(d: int, k: int, seed: int) -> Float[np.ndarray, "d k"]:
    """Basis of a uniformly distributed (Haar) k-subspace of R^d."""
    if not 1 <= k <= d:
        raise AnalysisError("No such subspace.", expected=f"1 ≤ k ≤ d = {d}", given=f"k = {k}")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))
    return q * np.sign(np.diagonal(r))


def check_basis(basis: Float[np.ndarray, "d k"], d: int | None = None) -> None:
    """Refuse a basis that is not column-orthonormal (d, k).

    Raises:
        AnalysisError: wrong shape, or BᵀB further than 1e-4 from the identity.
    """
    if basis.ndim != 2 or basis.shape[0] < basis.shape[1] or (d is not None and basis.shape[0] != d):
        raise AnalysisError(
            "This is not a basis of the model's space.",
            expected=f"columns of length {'d' if d is None else d}, at most as many as that",
            given=f"shape {basis.shape}",
        )
    error = float(np.abs(basis.T @ basis - np.eye(basis.shape[1])).max(initial=0.0))
    if error > 1e-4:
        raise AnalysisError(
            "The basis is not orthonormal.",
            expected="BᵀB = I within 1e-4",
            given=f"largest deviation {error:.2g}",
            next_step="Orthonormalise its columns, for example by a QR decomposition.",
        )


def project(x: Float[np.ndarray, "*n d"], basis: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "*n d"]:
    """P_Z x, row by row; the d × d projector is never formed."""
    return (x @ basis) @ basis.T


def principal_angles(a: Float[np.ndarray, "d k1"], b: Float[np.ndarray, "d k2"]) -> Float[np.ndarray, " k"]:
    """Principal angles between two subspaces in radians, ascending (accurate for small ones too)."""
    return np.sort(linalg.subspace_angles(a, b))


def grassmann_similarity(a: Float[np.ndarray, "d k1"], b: Float[np.ndarray, "d k2"]) -> float:
    """Mean squared cosine of the principal angles, ‖AᵀB‖_F²/min(k₁, k₂); chance is max(k₁, k₂)/d."""
    return float(((a.T @ b) ** 2).sum() / min(a.shape[1], b.shape[1]))


def grassmann_matrix(bases: Float[np.ndarray, "l d k"]) -> Float[np.ndarray, "l l"]:
    """Grassmann similarity of every pair of layers, from one matrix product."""
    layers, d, k = bases.shape
    flat = np.asarray(bases, dtype=np.float64).transpose(1, 0, 2).reshape(d, layers * k)
    inner = (flat.T @ flat).reshape(layers, k, layers, k)
    return (inner**2).sum(axis=(1, 3)) / k


def adjacent_minus_distant(similarity: Float[np.ndarray, "l l"]) -> float:
    """Mean similarity of neighbouring layers minus that of layers at least half the depth apart."""
    layers = similarity.shape[0]
    distance = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers)))
    if layers < 3:
        raise AnalysisError("Too few layers to compare.", expected="at least 3 layers", given=f"{layers}")
    return float(similarity[distance == 1].mean() - similarity[distance >= max(2, layers // 2)].mean())


def phase_boundary(similarity: Float[np.ndarray, "l l"]) -> tuple[int, float]:
    """The layer ℓ before which similarity drops most, and the drop: s(ℓ−1, ℓ) − s(ℓ, ℓ+1) of neighbours.

    The drop is 0 or less where no neighbours are less alike than the two before them.
    """
    neighbours = np.diagonal(similarity, 1)
    if neighbours.size < 2:
        raise AnalysisError(
            "Too few layers to compare.", expected="at least 3 layers", given=f"{similarity.shape[0]}"
        )
    drops = neighbours[:-1] - neighbours[1:]
    largest = int(drops.argmax())
    return largest + 1, float(drops[largest])
