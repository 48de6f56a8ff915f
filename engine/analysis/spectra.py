"""Singular values of a matrix beside those of a random one of the same shape and norm."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

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


def above_edge(values: Float[np.ndarray, " r"], m: int, n: int, level: float = 0.99) -> int:
    """How many singular values lie above what a random matrix of the same shape and norm stays below.

    The law is that of Gaussian entries. At 99 % it also serves for heavier tails: of Laplace ones 3 to 5 % of
    matrices with some hundred rows have a value above it, 9 % with 48.
    """
    sigma = np.asarray(values, dtype=np.float64)
    norm = float(np.sqrt((sigma**2).sum()))
    return int((sigma > random_edge(m, n, norm, level)).sum()) if norm > 0 else 0


def _sizes(m: int, n: int, norm: float) -> tuple[int, int]:
    if min(m, n) < 1 or not norm >= 0:
        raise AnalysisError(
            "There is no such matrix.",
            expected="a shape and a norm, not negative",
            given=f"{m} × {n}, {norm}",
        )
    return min(m, n), max(m, n)
