"""What rounding alone does to statistics of activations that are nearly equal: 1 − CKA and lengths of
updates.

A value of `bits` significant bits lies on a grid of step ulp = 2^(e + 1 − bits), 2^e ≤ |x| < 2^(e + 1); the
rounding error of what was meant is uniform in ±ulp/2 and has standard deviation ulp/√12.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError

Array = NDArray[np.float64]
BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Significant bits of a dtype, the implicit one included."""


def rounding_sd(x: Float[np.ndarray, "*s"], dtype: str) -> Float[np.ndarray, "*s"]:
    """Standard deviation of the error of values rounded to a dtype; 0 where a value is 0.

    Args:
        x: rounded values, in any dtype. dtype: the one that they were rounded to.

    Raises:
        AnalysisError: a dtype that is not known.
    """
    if dtype not in BITS:
        raise AnalysisError(
            "The rounding of this dtype is not known.", expected=", ".join(BITS), given=repr(dtype)
        )
    exponent = np.frexp(np.asarray(x, dtype=np.float64))[1]  # |x| = m·2^exponent, m in [½, 1)
    return np.where(x == 0, 0.0, np.ldexp(1.0, exponent - BITS[dtype])) / np.sqrt(12)


def row_error(x: Float[np.ndarray, "n d"], sd: Float[np.ndarray, "n d"]) -> float:
    """Relative size of an error: root of the mean over rows of E‖e_i‖²/‖x_i‖²; NaN for rows of zeros
    alone."""
    size = np.vecdot(x, x)
    return (
        float(np.sqrt((np.vecdot(sd, sd)[size > 0] / size[size > 0]).mean())) if size.any() else float("nan")
    )


def cka_error(x: Float[np.ndarray, "n d"], sd: Float[np.ndarray, "n d"], debiased: bool = False) -> float:
    """Expected 1 − CKA of features and the same features with independent errors, to second order.

    With X column-centred, K = XXᵀ and errors E of variance σ_ij², the Gram of X + E differs by
    δ = XEᵀ + EXᵀ + …, and 1 − CKA = ½ (‖δ‖² − ⟨K, δ⟩²/‖K‖²)/‖K‖² + …, of which

        E‖XEᵀ + EXᵀ‖² = 2 Σ_j (Σ_i X_ij²)(Σ_k σ_kj²) + 2 Σ_ij X_ij² σ_ij²,
        E⟨K, XEᵀ + EXᵀ⟩² = 4 Σ_ij (KX)_ij² σ_ij².

    The debiased estimator compares what stands off the diagonals of U-centred Grams K̃: there the second term
    of the first line is negative, and K̃ takes K's place. EEᵀ is left out, being of fourth order. When both
    sides have errors of their own, their expectations add up.

    Args:
        x: features, prompts in rows. sd: standard deviation of each entry's error.

    Returns:
        NaN for features that don't vary.
    """
    if x.shape != sd.shape or x.ndim != 2 or x.shape[0] < 4:
        raise AnalysisError(
            "Features and errors do not match.",
            expected="two arrays (n ≥ 4, d) of one shape",
            given=f"{x.shape} and {sd.shape}",
        )
    wide = np.asarray(x, dtype=np.float64)
    centred, var = wide - wide.mean(axis=0), np.asarray(sd, dtype=np.float64) ** 2
    k = centred @ centred.T
    if debiased:
        k = u_centred(k)
    size = float((k * k).sum())
    if size == 0:
        return float("nan")
    squares = centred * centred
    own = 2 * float((squares * var).sum())
    moved = 2 * float(squares.sum(axis=0) @ var.sum(axis=0)) + (-own if debiased else own)
    along = 4 * float((((k @ centred) ** 2) * var).sum())
    return max(0.5 * (moved - along / size) / size, 0.0)


def u_centred(k: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """U-centred Gram: rows, columns and the whole without the diagonal sum to 0, and the diagonal is 0."""
    n = len(k)
    bare = k - np.diag(np.diagonal(k))
    rows = bare.sum(axis=1) / (n - 2)
    out = bare - rows[:, None] - rows[None, :] + bare.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0.0)
    return np.asarray(out)


def cka_bound(x: Float[np.ndarray, "n d"], relative: float) -> float:
    """What 1 − CKA may become by errors of a relative size ‖e_i‖/‖x_i‖ of which no more is known.

    Errors that lie where the features vary do most: with the covariance of the features, E‖XEᵀ + EXᵀ‖² is
    2 n tr(C_e XᵀX) = 2 ‖K‖² Σ‖e_i‖²/tr K, so that 1 − CKA is Σ‖e_i‖²/tr K, tr K of centred features.
    Independent errors of each entry do about PR/d of that, PR = (tr K)²/‖K‖².

    Returns:
        NaN for features that don't vary.
    """
    wide = np.asarray(x, dtype=np.float64)
    spread = float(((wide - wide.mean(axis=0)) ** 2).sum())
    return relative**2 * float((wide * wide).sum()) / spread if spread > 0 else float("nan")


def sum_error(
    total: Float[np.ndarray, "n d"], parts: Sequence[Float[np.ndarray, "n d"]], dtype: str
) -> float:
    """Share of the length of a sum (or difference) of rounded parts that is their rounding, at most 1.

    √(E Σ‖e_i‖²/Σ‖x_i‖²) over prompts; the errors of the parts are independent.

    Args:
        total: what the parts add up to, or differ by. parts: as they were rounded to `dtype`.
    """
    error = sum(float((rounding_sd(part, dtype) ** 2).sum()) for part in parts)
    size = float((np.asarray(total, dtype=np.float64) ** 2).sum())
    return min(float(np.sqrt(error / size)), 1.0) if size > 0 else 0.0
