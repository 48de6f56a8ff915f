"""Vectors of the same problems in two languages, and the distances between them in a subspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError

Array = NDArray[np.float64]
Bases = NDArray[np.floating] | Mapping[int, NDArray[np.floating]]
"""A basis (d, k_max) nested in k, or a mapping k → basis (d, k) where they are built per k."""


@dataclass(frozen=True)
class Problems:
    """Vectors of the same problems in two languages, row i of both being problem i; (n, d) float64."""

    one: Array
    two: Array

    @classmethod
    def of(cls, one: Float[np.ndarray, "n d"], two: Float[np.ndarray, "n d"]) -> Problems:
        """Checked problems.

        Raises:
            AnalysisError: other shapes, fewer than 4 problems, or values that are not finite.
        """
        a, b = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
        if a.ndim != 2 or a.shape != b.shape or a.shape[0] < 4:
            raise AnalysisError(
                "Separation compares the same problems in two languages.",
                expected="two arrays (n, d) of one shape, n ≥ 4",
                given=f"shapes {a.shape} and {b.shape}",
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise AnalysisError("Some values are not finite.", expected="finite values", given="NaN or inf")
        return cls(a, b)

    @property
    def d(self) -> int:
        return int(self.one.shape[1])

    @property
    def n(self) -> int:
        return int(self.one.shape[0])

    @cached_property
    def centred(self) -> tuple[Array, Array]:
        """Both languages about their own means, which leaves distances within a language as they are."""
        return self.one - self.one.mean(axis=0), self.two - self.two.mean(axis=0)

    @cached_property
    def shift(self) -> Array:
        """What the language changes of each problem, two − one."""
        return self.two - self.one

    @cached_property
    def whole(self) -> Squares:
        """Squared distances in the whole space."""
        cross = np.vecdot(self.shift, self.shift)
        one, two = (squares_between(c) for c in self.centred)
        return Squares(one, two, cross)


@dataclass(frozen=True)
class Squares:
    """Squared distances in one subspace: within either language (*, n, n), and across (*, n)."""

    one: Array
    two: Array
    cross: Array

    def __sub__(self, other: Squares) -> Squares:
        pairs = zip((self.one, self.two, self.cross), (other.one, other.two, other.cross), strict=True)
        one, two, cross = (np.maximum(a - b, 0.0) for a, b in pairs)
        return Squares(one, two, cross)

    def ratio(self) -> Array:
        """ratio(S), one for each leading index; NaN where all problems coincide within a language."""
        n = self.cross.shape[-1]
        within = (_root_sum(self.one) + _root_sum(self.two)) / (2 * n * (n - 1))
        across = np.sqrt(self.cross).mean(axis=-1)
        return np.divide(across, within, out=np.full_like(across, np.nan), where=within > 0)


def squares_between(rows: Array) -> Array:
    """Squared distances between rows (*, n, k) from their Gram matrix, (*, n, n)."""
    gram = rows @ np.swapaxes(rows, -1, -2)
    own = np.einsum("...ii->...i", gram)
    found = own[..., :, None] + own[..., None, :] - 2 * gram
    np.maximum(found, 0.0, out=found)
    index = np.arange(found.shape[-1])
    found[..., index, index] = 0.0
    return found


def _root_sum(squares: Array) -> Array:
    return np.sqrt(squares).sum(axis=(-2, -1))
