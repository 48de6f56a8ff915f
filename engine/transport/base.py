"""What all transport maps share: input checks, the score, fitting on sides that keep their decompositions."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from engine.errors import AnalysisError
from engine.transport.sides import CONSTANT_RTOL, Array, Side


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


class TransportMap(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A map from source activations (n, d_x) to target activations (n, d_y); rows are paired prompts."""

    same_width = False
    uses_pairs = True
    """Whether the fit depends on which source row belongs to which target row."""

    def fit(self, X: Any, y: Any, groups: NDArray[Any] | None = None) -> Self:
        """Fits the map on paired rows. Raises ValueError on data that is not finite or too short.

        Args:
            groups: (n,) prompts that belong together (pairs); used by maps that choose a penalty, which
                then leave whole groups out.
        """
        source, target = self._check_pairs(X, y)
        self._fit(Side(source), Side(target), groups)
        return self

    def fit_sides(self, x: Side, y: Side, groups: NDArray[Any] | None = None) -> Self:
        """`fit` on sides, which keep what was computed of them for the next fit. Their rows are finite
        and as many on both sides."""
        self.n_features_in_ = x.shape[1]
        self.single_output_ = False
        self._check_width(x.shape[1], y.shape[1])
        self._fit(x, y, groups)
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
        self._check_width(x.shape[1], target.shape[1])
        return x, target

    def _check_width(self, source: int, target: int) -> None:
        if self.same_width and source != target:
            raise AnalysisError(
                f"{type(self).__name__} works dimension by dimension.",
                expected="source and target of one width",
                given=f"widths {source} and {target}",
                next_step="Use RidgeTransport or ScaledProcrustes for models of different width.",
            )

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        raise NotImplementedError

    def _predict(self, x: Array) -> Array:
        raise NotImplementedError


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises AnalysisError unless a named option has one of its values."""
    if value not in allowed:
        raise AnalysisError(f"Unknown {name}.", expected=" or ".join(map(repr, allowed)), given=repr(value))
