"""What all transport maps share: input checks, the score, and the thin decomposition of one side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from engine.errors import AnalysisError

Array = NDArray[np.float64]

CONSTANT_RTOL = 1e-6
"""A dimension whose sd is below this share of its mean size is constant: float32 keeps 1.2e-7 of a value,
and sums over a layer a few times that. (The live patch's moment matching uses the same rule.)"""


def r2(y: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]) -> float:
    """Variance-weighted R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², summed over prompts and dimensions.

    ȳ is the mean of the rows given, so R² of validation rows is judged against their own mean. Errors in
    a dimension that doesn't vary count too. NaN when nothing varies.
    """
    y = np.asarray(y, dtype=np.float64)
    total = float(((y - y.mean(axis=0)) ** 2).sum())
    if total <= (CONSTANT_RTOL**2) * float((y**2).sum()):
        return float("nan")
    return 1.0 - float(((y - predicted) ** 2).sum()) / total


def column_moments(x: Array) -> tuple[Array, Array]:
    """Mean and sd (n − 1) of each column; the sd is exactly 0 where a column is constant up to rounding."""
    mean, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    return mean, np.where(sd <= CONSTANT_RTOL * np.sqrt((x**2).mean(axis=0)), 0.0, sd)


@dataclass(frozen=True)
class Span:
    """Thin decomposition of centred activations, x − mean = u · diag(sigma) · vᵀ.

    Attributes:
        mean: (d,). u: (n, r) orthonormal. sigma: (r,) descending. v: (d, r) orthonormal.
    """

    mean: Array
    u: Array
    sigma: Array
    v: Array

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"]) -> Span:
        """Decomposes through the smaller of the n × n and d × d Grams.

        Directions whose squared singular value is below max(n, d)·2.2e-16 of the largest are rounding
        and left out, so centring alone takes one when n ≤ d.
        """
        mean = x.mean(axis=0)
        centred = x - mean
        wide = x.shape[0] < x.shape[1]
        values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        values, vectors = values[::-1], vectors[:, ::-1]
        if values.sum() <= CONSTANT_RTOL**2 * float((x**2).sum()):
            keep = 0
        else:
            keep = int((values > max(x.shape) * np.finfo(np.float64).eps * values[0]).sum())
        sigma, vectors = np.sqrt(values[:keep]), vectors[:, :keep]
        other = (centred.T if wide else centred) @ vectors / sigma
        return cls(mean, vectors, sigma, other) if wide else cls(mean, other, sigma, vectors)

    @property
    def rank(self) -> int:
        return self.sigma.size

    @property
    def variances(self) -> Array:
        """Non-zero eigenvalues of the covariance (divided by n − 1), descending."""
        return self.sigma**2 / (self.u.shape[0] - 1)


class TransportMap(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A map from source activations (n, d_x) to target activations (n, d_y); rows are paired prompts."""

    same_width = False

    def fit(self, X: Any, y: Any) -> TransportMap:
        """Fits the map on paired rows. Raises ValueError on data that is not finite or too short."""
        source, target = self._check_pairs(X, y)
        self._fit(source, target)
        return self

    def predict(self, X: Any) -> Array:
        """Mapped activations (n, d_y), float64; (n,) if the map was fitted on a one-dimensional y."""
        check_is_fitted(self, "single_output_")
        x = validate_data(self, X, dtype=np.float64, reset=False)
        mapped = self._predict(x)
        return mapped.ravel() if self.single_output_ else mapped

    def score(self, X: Any, y: Any, sample_weight: None = None) -> float:
        """Variance-weighted R² in the target's original space; see `r2`."""
        if sample_weight is not None:
            raise AnalysisError(
                "Transport maps score prompts alike.", expected="sample_weight=None", given="weights"
            )
        target = np.asarray(y, dtype=np.float64)
        return r2(target.reshape(len(target), -1), self.predict(X).reshape(len(target), -1))

    def _check_pairs(self, X: Any, y: Any) -> tuple[Array, Array]:
        x, target = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        self.single_output_ = target.ndim == 1
        target = np.asarray(target, dtype=np.float64).reshape(len(target), -1)
        if self.same_width and x.shape[1] != target.shape[1]:
            raise AnalysisError(
                f"{type(self).__name__} works dimension by dimension.",
                expected="source and target of one width",
                given=f"widths {x.shape[1]} and {target.shape[1]}",
                next_step="Use RidgeTransport or ScaledProcrustes for models of different width.",
            )
        return x, target

    def _fit(self, x: Array, y: Array) -> None:
        raise NotImplementedError

    def _predict(self, x: Array) -> Array:
        raise NotImplementedError


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises AnalysisError unless a named option has one of its values."""
    if value not in allowed:
        raise AnalysisError(f"Unknown {name}.", expected=" or ".join(map(repr, allowed)), given=repr(value))
