"""Singular values of a matrix beside those of a random one of the same shape and norm."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from engine.errors import AnalysisError

Array = NDArray[np.float64]

TRACY_WIDOM = {0.95: 0.9793, 0.99: 2.0234}
"""Quantiles of the Tracy-Widom law of order 1 (Bejan 2005, table 1)."""


def random_values(m: int, n: int, norm: float, points: int = 4001) -> Float[np.ndarray, " r"]:
    """Singular values, descending, that are expected of a Gaussian (m, n) matrix of Frobenius norm `norm`.

    Entries are independent with variance norm²/(m n). The values are quantiles of the Marchenko-Pastur law
    (1967) at (i − ½)/r, r = min(m, n): exact as the matrix grows, within a few per cent from some tens on.
    """
    small, large = _sizes(m, n, norm)
    ratio = small / large
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # x = low + (high − low) sin²(t): takes the square roots out of both ends of the density
    t = np.linspace(0.0, np.pi / 2, points)
    x = low + (high - low) * np.sin(t) ** 2
    root = (high - low) * np.sin(t) * np.cos(t)
    density = root * 2 * root / np.where(x > 0, x, 1.0)
    if low == 0:  # square: the density's pole meets the zero of the root
        density[0] = 2 * high
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    wanted = (np.arange(small, 0, -1) - 0.5) / small
    found = np.interp(wanted, mass / mass[-1], x)
    return np.sqrt(found / small) * norm


def random_edge(m: int, n: int, norm: float, level: float = 0.95) -> float:
    """The largest singular value that such a random matrix stays below with probability `level`.

    Johnstone (2001): the largest eigenvalue of XXᵀ, centred and scaled, follows the Tracy-Widom law.
    """
    small, large = _sizes(m, n, norm)
    if level not in TRACY_WIDOM:
        raise AnalysisError("No quantile for this level.", expected=list(TRACY_WIDOM), given=level)
    a, b = np.sqrt(large - 1) if large > 1 else 1.0, np.sqrt(small)
    centre, scale = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(np.sqrt(centre + scale * TRACY_WIDOM[level]) * norm / np.sqrt(m * n))


def uneven_edge(
    rows: Float[np.ndarray, " m"], columns: Float[np.ndarray, " n"], level: float = 0.99
) -> float:
    """`random_edge` for independent entries whose spread differs by row and by column.

    With row and column sums of squares r and c, total T, entry (i, j) has variance r_i c_j / T. For a large
    such matrix σ² ends at T times the least τ/(p q) over 0 < p < T/max r, with τ = Σ r p/(T − r p) and q such
    that τ = Σ c q/(T − c q): the equations of a variance profile of rank one, on the real line right of the
    spectrum; for equal rows and columns (√m + √n)² T/(mn). It fluctuates as `random_edge` does, scaled.

    That r and c are those of the matrix itself makes it cautious: of Gaussian, Laplace and bfloat16-rounded
    noise with rows and columns of log-sd 0 to 1, none of 100 (48 × 96) matrices has a value above it, where
    the edge of even entries is passed by up to all of them.

    Args:
        rows, columns: sums of squares of a matrix; those that are 0 are left out.

    Returns:
        0 for a matrix of zeros.
    """
    r, c = (np.asarray(v, dtype=np.float64)[np.asarray(v) > 0] for v in (rows, columns))
    if not r.size or not c.size:
        return 0.0
    total = float(r.sum())
    a, b = r / r.max(), c / c.max()

    def ended(logit: float) -> float:
        """log of τ/(p q) at p = s/max r, with p and q in these units."""
        p = 1 / (1 + np.exp(-logit))
        tau = float((a * p / (1 - a * p)).sum())
        q = brentq(lambda x: float((b * x / (1 - b * x)).sum()) - tau, 0.0, 1 - 1e-15, xtol=1e-15)
        return float(np.log(tau) - np.log(p) - np.log(q))

    found = minimize_scalar(ended, bounds=(-25.0, 25.0), method="bounded", options={"xatol": 1e-5})
    end = float(np.exp(found.fun)) * float(r.max()) * float(c.max()) / total
    even = (np.sqrt(r.size) + np.sqrt(c.size)) ** 2 * total / (r.size * c.size)
    return random_edge(r.size, c.size, float(np.sqrt(total)), level) * float(np.sqrt(end / even))


def squares(matrix: Float[np.ndarray, "m n"]) -> tuple[Array, Array]:
    """Sums of squares of a matrix's rows (m,) and columns (n,), float64."""
    rows, columns = (np.einsum(f"ij,ij->{side}", matrix, matrix, dtype=np.float64) for side in "ij")
    return rows, columns


def squares_of_product(
    left: Float[np.ndarray, "m r"], right: Float[np.ndarray, "r n"]
) -> tuple[Array, Array]:
    """`squares` of left·right, which is not made."""
    one, other = left.astype(np.float64), right.astype(np.float64)
    rows = np.einsum("ir,ir->i", one @ (other @ other.T), one)
    columns = np.einsum("rj,rj->j", (one.T @ one) @ other, other)
    return rows, columns


def _sizes(m: int, n: int, norm: float) -> tuple[int, int]:
    if min(m, n) < 1 or not norm >= 0:
        raise AnalysisError(
            "There is no such matrix.",
            expected="a shape and a norm, not negative",
            given=f"{m} × {n}, {norm}",
        )
    return min(m, n), max(m, n)
