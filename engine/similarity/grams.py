"""Centred kernel alignment from Gram matrices: definitions and whole-stack versions.

All but `linear_cka` works on n × n Gram matrices, so that once they are stored no comparison touches
the n × d features again. See `docs/methods/similarity.md` for what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from engine.errors import AnalysisError

Grams = NDArray[np.floating] | Sequence[NDArray[np.floating]]
"""Gram matrices of several layers: an array (layer, n, n) or a sequence of (n, n) arrays."""

MIN_PROMPTS_DEBIASED = 4
ZERO_VARIANCE = "The {side} side is the same for every prompt (zero variance)."
NO_STRUCTURE = (
    "The {side} side has no more structure than independent noise at this number of prompts "
    "(its debiased self term is not positive)."
)


class Cka(float):
    """A CKA value: a plain float that also says why it is NaN.

    Attributes:
        reason: None for a defined value, else one sentence naming the cause.
    """

    reason: str | None

    def __new__(cls, value: float, reason: str | None = None) -> Cka:
        self = super().__new__(cls, value)
        self.reason = reason
        return self


def gram(x: Float[np.ndarray, "n d"], dtype: type[np.floating] = np.float64) -> Float[np.ndarray, "n n"]:
    """Gram matrix of the column-centred features, K = X_c X_cᵀ.

    Columns whose spread is only rounding of their value count as constant, so a site with the same
    activation for every prompt gives an exactly zero matrix.

    Args:
        x: features (n, d), any floating dtype.
        dtype: dtype of the product and of the result; the means are always float64.

    Returns:
        Symmetric (n, n) array whose rows sum to zero within rounding.

    Raises:
        AnalysisError: not two-dimensional, fewer than 2 prompts, or not finite.
    """
    narrow = _centred(x).astype(dtype, copy=False)
    return centre(narrow @ narrow.T)


def _centred(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The features about their means in float64, constant columns exactly 0; errors as in `gram`."""
    if x.ndim != 2 or x.shape[0] < 2:
        raise AnalysisError(
            "A Gram matrix needs features of several prompts.",
            expected="an array (n ≥ 2, d)",
            given=f"shape {x.shape}",
        )
    resolution = np.finfo(x.dtype).eps if np.issubdtype(x.dtype, np.floating) else 0.0
    wide = np.asarray(x, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise AnalysisError(
            "The features are not all finite.",
            expected="finite numbers",
            given=f"{int((~np.isfinite(wide)).sum())} NaN or infinite entries",
        )
    largest = np.abs(wide).max(axis=0)
    centred = wide - wide.mean(axis=0)
    centred[:, np.abs(centred).max(axis=0) <= 4 * resolution * largest] = 0.0
    return centred


def centre(k: Float[np.ndarray, "*l n n"]) -> Float[np.ndarray, "*l n n"]:
    """Double-centre one Gram matrix or a stack: H K H with H = I − 11ᵀ/n (dtype kept, integers: float64)."""
    k = k if np.issubdtype(k.dtype, np.floating) else k.astype(np.float64)
    n = k.shape[-1]
    rows = (k @ np.ones(n, dtype=k.dtype)).astype(np.float64) / n
    shift = (rows - rows.mean(axis=-1, keepdims=True) / 2).astype(k.dtype)
    out = k - shift[..., :, None]
    out -= shift[..., None, :]
    return out


def sub_gram(
    k: Float[np.ndarray, "*l n n"], index: Int[np.ndarray, " m"] | NDArray[np.bool_]
) -> Float[np.ndarray, "*l m m"]:
    """Gram matrix of a subset of the prompts, centred on the subset's own mean.

    Centring a sub-block of a centred Gram gives exactly the Gram of the centred sub-features: the
    mean that was removed before is a constant vector and drops out. Where nothing but rounding is left,
    because the subset's features are all alike, the result is exactly zero.

    Args:
        k: Gram matrix (n, n) or stack (layer, n, n).
        index: prompt indices, or a boolean mask of length n.
    """
    rows = np.flatnonzero(index) if np.asarray(index).dtype == np.bool_ else np.asarray(index)
    if rows.size < 2:
        raise AnalysisError(
            "The subset is too small to compare.", expected="at least 2 prompts", given=f"{rows.size} prompts"
        )
    if k.ndim == 2:
        return _centred_block(k[rows][:, rows])
    out = np.empty((*k.shape[:-2], rows.size, rows.size), dtype=k.dtype)
    for layer in np.ndindex(k.shape[:-2]):
        out[layer] = _centred_block(k[layer][rows][:, rows])
    return out


def _centred_block(block: NDArray[np.floating]) -> NDArray[np.floating]:
    """Centres a block of a Gram matrix; 16 rounding units of its largest entry or less count as zero."""
    out = centre(block)
    largest, left = np.abs(np.diagonal(block)).max(), np.abs(np.diagonal(out)).max()
    return np.zeros_like(out) if left <= 16 * np.finfo(out.dtype).eps * largest else out


def as_centred(k: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The Gram itself when its row means are rounding, else its double-centred copy.

    A leftover row mean of 1e-4 of the typical diagonal entry changes an inner product of Grams by
    its square, 1e-8, so the threshold is far below any figure that is shown.
    """
    k = k if np.issubdtype(k.dtype, np.floating) else k.astype(np.float64)
    n = k.shape[0]
    scale = float(np.abs(np.diagonal(k)).mean(dtype=np.float64))
    offset = float(np.abs(k @ np.ones(n, dtype=k.dtype)).max()) / n
    return k if offset <= 1e-4 * scale else centre(k)


def as_layers(grams: Grams | Float[np.ndarray, "n n"]) -> tuple[list[NDArray[np.floating]], bool]:
    """One Gram matrix or many as a list, and whether it was a single one."""
    if isinstance(grams, np.ndarray) and grams.ndim == 2:
        return [grams], True
    return [np.asarray(g) for g in grams], False


def check_pair(a: NDArray[np.floating], b: NDArray[np.floating], debiased: bool) -> None:
    """Refuse Gram matrices that do not describe the same prompts, or too few of them.

    Raises:
        AnalysisError: not square, different n, or n below what the estimator needs.
    """
    if a.ndim != 2 or a.shape[0] != a.shape[1] or b.shape != a.shape:
        raise AnalysisError(
            "Two Gram matrices of the same prompts are needed.",
            expected="two square matrices of equal size",
            given=f"shapes {a.shape} and {b.shape}",
            next_step="Compute both from the same prompts in the same order.",
        )
    _check_count(a.shape[0], debiased)


def _check_count(n: int, debiased: bool) -> None:
    least = MIN_PROMPTS_DEBIASED if debiased else 2
    if n < least:
        raise AnalysisError("Too few prompts for this estimator.", expected=f"n ≥ {least}", given=f"n = {n}")


def inner(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"]) -> float:
    """Σ_ij a_ij b_ij: row products in the input's precision, their sum in float64."""
    return float(np.vecdot(a, b).sum(dtype=np.float64))


def _numerator(
    inner_ab: float, diag_a: NDArray[np.floating], diag_b: NDArray[np.floating], debiased: bool
) -> float:
    """HSIC (biased: times n², debiased: times n(n−3)) of centred Grams from ⟨K, L⟩ and diagonals.

    For centred Grams K1 = 0, so with the diagonal zeroed K̃1 = −diag K, 1ᵀK̃1 = −tr K and
    1ᵀK̃L̃1 = diag K · diag L; Song et al.'s formula then needs no further pass over the matrices.
    """
    if not debiased:
        return inner_ab
    n = diag_a.shape[0]
    da, db = diag_a.astype(np.float64), diag_b.astype(np.float64)
    both = float(da @ db)
    return inner_ab - both - 2 / (n - 2) * both + float(da.sum() * db.sum()) / ((n - 1) * (n - 2))


def hsic(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"], debiased: bool = False) -> float:
    """Hilbert–Schmidt independence criterion of two Gram matrices.

    Biased: tr(HKH·HLH)/n² (Gretton et al. 2005). Debiased, with K̃ = K, diagonal zeroed:
    [tr K̃L̃ + (1ᵀK̃1)(1ᵀL̃1)/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)) (Song et al. 2012).
    The debiased value is the same for centred and uncentred Grams: adding f_i + f_j to the entries
    off the diagonal changes nothing, and centring is such an addition.

    Args:
        a, b: symmetric Gram matrices K and L of the same n prompts, centred or not.
        debiased: which of the two; debiased needs n ≥ 4 and may be negative.
    """
    check_pair(a, b, debiased)
    ac, bc = as_centred(a), as_centred(b)
    n = a.shape[0]
    value = _numerator(inner(ac, bc), np.diagonal(ac), np.diagonal(bc), debiased)
    return value / (n * (n - 3) if debiased else n * n)


def _ratio(ab: float, aa: float, bb: float, traces: tuple[float, float], debiased: bool) -> Cka:
    if not np.isfinite([ab, aa, bb]).all():
        return Cka(np.nan, "The Gram matrices hold values that are not finite.")
    for name, trace, own in (("first", traces[0], aa), ("second", traces[1], bb)):
        if trace <= 0:
            return Cka(np.nan, ZERO_VARIANCE.format(side=name))
        if own <= 0 and debiased:
            return Cka(np.nan, NO_STRUCTURE.format(side=name))
        if own <= 0:
            return Cka(np.nan, f"The {name} side's variance is below what its precision can hold.")
    return Cka(ab / float(np.sqrt(aa) * np.sqrt(bb)))


def cka_from_grams(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"], debiased: bool = False) -> Cka:
    """CKA of two Gram matrices: HSIC(K, L)/√(HSIC(K, K)·HSIC(L, L)).

    Args:
        a, b: Gram matrices (n, n) of the same prompts, centred or not, float32 or float64.
        debiased: use the unbiased HSIC (can be slightly negative, is not clipped).

    Returns:
        A float; NaN with a `.reason` when one side has no variance.
    """
    check_pair(a, b, debiased)
    ac, bc = as_centred(a), as_centred(b)
    da, db = np.diagonal(ac), np.diagonal(bc)
    ab, aa, bb = (
        _numerator(inner(p, q), dp, dq, debiased)
        for p, q, dp, dq in ((ac, bc, da, db), (ac, ac, da, da), (bc, bc, db, db))
    )
    traces = float(da.sum(dtype=np.float64)), float(db.sum(dtype=np.float64))
    return _ratio(ab, aa, bb, traces, debiased)


def linear_cka(x: Float[np.ndarray, "n d1"], y: Float[np.ndarray, "n d2"], debiased: bool = False) -> Cka:
    """Linear CKA of two sets of features of the same prompts (Kornblith et al. 2019).

    With more prompts than dimensions no n × n matrix is made: ⟨K, L⟩ = ‖XᵀY‖², and what else either
    estimator needs is the diagonals.

    Args:
        x, y: features (n, d₁) and (n, d₂); centred here.
        debiased: see `cka_from_grams`.
    """
    if x.shape[0] != y.shape[0]:
        raise AnalysisError(
            "Both sides must describe the same prompts.",
            expected=f"{x.shape[0]} rows on both sides",
            given=f"{x.shape[0]} and {y.shape[0]}",
        )
    if x.shape[0] <= max(x.shape[1], y.shape[1]):
        return cka_from_grams(gram(x), gram(y), debiased)
    _check_count(x.shape[0], debiased)
    xc, yc = _centred(x), _centred(y)
    da, db = np.vecdot(xc, xc), np.vecdot(yc, yc)
    ab, aa, bb = (
        _numerator(float(((p.T @ q) ** 2).sum()), dp, dq, debiased)
        for p, q, dp, dq in ((xc, yc, da, db), (xc, xc, da, da), (yc, yc, db, db))
    )
    return _ratio(ab, aa, bb, (float(da.sum()), float(db.sum())), debiased)


def cka_curve(grams_a: Grams, grams_b: Grams, debiased: bool = False) -> list[Cka]:
    """CKA of layer ℓ of one model with layer ℓ of the other, for all ℓ.

    Args:
        grams_a, grams_b: stacks (L, n, n) or sequences of L Gram matrices.

    Returns:
        L values, each a float with its `.reason` when NaN.
    """
    if len(grams_a) != len(grams_b):
        raise AnalysisError(
            "A curve compares layer with layer.",
            expected="as many layers on both sides",
            given=f"{len(grams_a)} and {len(grams_b)}",
            next_step="Use cross_layer_cka for models of different depth.",
        )
    return [cka_from_grams(a, b, debiased) for a, b in zip(grams_a, grams_b, strict=True)]


def _stack(grams: Grams) -> NDArray[np.floating]:
    """Centred Grams as one array (L, n, n); the input itself when nothing has to change."""
    centred = [as_centred(k) for k in grams]
    if isinstance(grams, np.ndarray) and all(np.shares_memory(k, grams) for k in centred):
        return grams
    return np.stack(centred)


def _inner_products(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """All ⟨A_i, B_j⟩ by blocked matrix products: float32 inside a block, float64 across blocks."""
    total = np.zeros((a.shape[0], b.shape[0]))
    left, right = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    step = 16384
    for start in range(0, left.shape[1], step):
        total += left[:, start : start + step] @ right[:, start : start + step].T
    return total


def cross_layer_cka(grams_a: Grams, grams_b: Grams, debiased: bool = False) -> Float[np.ndarray, "la lb"]:
    """CKA of every layer of one model with every layer of the other.

    Args:
        grams_a: (L_a, n, n); grams_b: (L_b, n, n), Gram matrices of the same prompts.

    Returns:
        (L_a, L_b) float64; rows and columns without variance are NaN (`cka_from_grams` of the pair
        gives the reason).
    """
    check_pair(np.asarray(grams_a[0]), np.asarray(grams_b[0]), debiased)
    a = _stack(grams_a)
    b = a if grams_b is grams_a else _stack(grams_b)
    n = a.shape[1]
    diag_a, diag_b = (np.diagonal(s, axis1=1, axis2=2).astype(np.float64) for s in (a, b))
    numerator = _inner_products(a, b)
    if debiased:
        numerator -= n / (n - 2) * (diag_a @ diag_b.T)
        numerator += np.outer(diag_a.sum(1), diag_b.sum(1)) / ((n - 1) * (n - 2))
    own_a, own_b = (
        np.array([_numerator(inner(k, k), d, d, debiased) for k, d in zip(s, diagonal, strict=True)])
        for s, diagonal in ((a, diag_a), (b, diag_b))
    )
    own_a[(own_a <= 0) | (diag_a.sum(1) <= 0)] = np.nan
    own_b[(own_b <= 0) | (diag_b.sum(1) <= 0)] = np.nan
    return numerator / np.sqrt(np.outer(own_a, own_b))
