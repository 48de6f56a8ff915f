"""Ridge regression between activations with the whole λ path from one decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from engine.analysis.resampling import unit_index
from engine.analysis.transport.base import Array, Span, TransportMap, check_choice, column_moments
from engine.errors import AnalysisError

DEFAULT_ALPHAS = tuple(float(a) for a in np.logspace(-2, 6, 25))


def leave_one_out_errors(span: Span, y: Float[np.ndarray, "n m"], alphas: Array) -> Float[np.ndarray, "a"]:
    """Mean squared leave-one-out error of ridge for each λ, with an unpenalised intercept.

    e_i = (y_i − ŷ_i)/(1 − H_ii), H = U diag(σ²/(σ²+λ)) Uᵀ + 11ᵀ/n (Allen 1974; Golub, Heath & Wahba 1979):
    equal to n refits with the standardisation frozen. I − H is summed from λ/(σ²+λ), not subtracted, so that
    small λ with n ≤ d (where every H_ii is nearly 1) keep their digits. With n ≤ m the squared
    residuals come from the r × r Gram of Uᵀy: the cost per λ doesn't depend on the target's width.

    Args:
        y: (n, m) centred.
    """
    n, m = y.shape
    errors = np.empty(alphas.size)
    wide = n <= m
    projected = span.u.T @ y
    saturated = span.rank == n - 1  # then U and 1/√n are a complete basis, and nothing lies outside
    outside = np.zeros_like(y) if saturated else y - span.u @ projected
    free = np.zeros(n) if saturated else np.maximum(1 - 1 / n - (span.u**2).sum(axis=1), 0.0)
    if wide:
        cross, inner, size = projected @ outside.T, projected @ projected.T, (outside**2).sum(axis=1)
    for index, alpha in enumerate(alphas):
        kept = span.u * (alpha / (span.sigma**2 + alpha))
        if wide:
            square = size + 2 * (kept * cross.T).sum(axis=1) + ((kept @ inner) * kept).sum(axis=1)
        else:
            square = ((outside + kept @ projected) ** 2).sum(axis=1)
        left_out = free + (kept * span.u).sum(axis=1)
        errors[index] = (square / left_out**2).sum() / (n * m) if (left_out > 0).all() else np.inf
    return errors


@dataclass(frozen=True)
class PathErrors:
    """Σ‖y − T diag(g) P‖² as a function of λ from r × r products: ‖y‖² − 2 c·g + gᵀ(TᵀT ∘ PPᵀ)g.

    T are the rows' coordinates, g = σ/(σ² + λ), P the projected target.

    Attributes:
        size: ‖y‖², y about the train mean. total: about its own mean. cross: c (r,). inner: (r, r).
        sigma: (r,).
    """

    size: float
    total: float
    cross: Array
    inner: Array
    sigma: Array

    @classmethod
    def of(cls, fitted: RidgeTransport, x: Array, y: Array, projected: Array) -> PathErrors:
        """From rows x, their target y about the train mean, and P in the target's units."""
        coordinates = fitted._coordinates(x)
        return cls(
            float((y**2).sum()),
            float(((y - y.mean(axis=0)) ** 2).sum()),
            (coordinates * (y @ projected.T)).sum(axis=0),
            (coordinates.T @ coordinates) * (projected @ projected.T),
            fitted.sigma_,
        )

    def squared(self, alphas: Sequence[float] | Array) -> Float[np.ndarray, "a"]:
        """Sum of squared errors at each λ."""
        gains = self.sigma / (self.sigma**2 + np.asarray(alphas, dtype=np.float64)[:, None])
        return self.size - 2 * gains @ self.cross + ((gains @ self.inner) * gains).sum(axis=1)

    def r2(self, alphas: Sequence[float] | Array) -> Float[np.ndarray, "a"]:
        """Variance-weighted R² at each λ; NaN where the target doesn't vary."""
        missed = self.squared(alphas)
        return 1 - missed / self.total if self.total > 0 else np.full(missed.shape, np.nan)


class RidgeTransport(TransportMap):
    """Ridge regression on standardised sides: min Σ_i ‖y_i − x_i W‖² + λ‖W‖² (a sum, not a mean).

    Both sides are centred and divided by their sd (n − 1); dimensions that are constant up to rounding
    are dropped (source) or predicted by their mean (target). One decomposition, of the smaller of the
    n × n and d × d Grams, serves every λ, the choice of λ, and `at`, `predict_path`, `score_path`.

    Args:
        alphas: candidates for λ, all > 0; one value is simply used.
        selection: "loo", closed-form leave-one-out error in the standardised space, or "holdout".
        holdout: share of prompts (or groups) held out to choose λ; the final fit uses all.
        seed: of the held-out split.

    Attributes:
        alpha_: λ in use. alphas_, errors_: (a,) the path and its mean squared error per entry.
        basis_: (d_x, r), zero rows where dropped. sigma_: (r,). projected_: (r, d_y) = Uᵀ Y_standardised.
        source_mean_, source_sd_, target_mean_, target_sd_: sd exactly 0 where constant.
        dropped_share_: share of source dimensions dropped. dropped_targets_share_: of target dimensions.
    """

    def __init__(
        self,
        alphas: Sequence[float] = DEFAULT_ALPHAS,
        selection: str = "loo",
        holdout: float = 0.25,
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.selection = selection
        self.holdout = holdout
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: NDArray[Any] | None = None) -> RidgeTransport:
        """Fits on paired rows; `groups` (n,) keeps prompts of one group on one side of the held-out split."""
        source, target = self._check_pairs(X, y)
        self._check_options(groups)
        if self.selection == "holdout" and len(self.alphas) > 1:
            self.errors_ = self._holdout_errors(source, target, groups)
        self._fit(source, target)
        return self

    def _check_options(self, groups: NDArray[Any] | None) -> None:
        check_choice("selection", self.selection, ("loo", "holdout"))
        alphas = np.asarray(self.alphas, dtype=np.float64)
        if alphas.ndim != 1 or alphas.size == 0 or not (alphas > 0).all() or not np.isfinite(alphas).all():
            raise AnalysisError("Ridge needs penalties.", expected="alphas > 0, at least one", given=alphas)
        if groups is not None and self.selection == "loo":
            raise AnalysisError(
                "Leave-one-out would keep the other prompts of the left-out prompt's group.",
                expected='selection="holdout" where prompts come in groups',
                given='groups with selection="loo"',
                next_step='Set selection="holdout", or leave groups out.',
            )

    def _fit(self, x: Array, y: Array) -> None:
        self.source_mean_, self.source_sd_ = column_moments(x)
        self.target_mean_, self.target_sd_ = column_moments(y)
        kept = self.source_sd_ > 0
        self.dropped_share_ = float(1 - kept.mean())
        self.dropped_targets_share_ = float((self.target_sd_ == 0).mean())
        span = Span.of((x[:, kept] - self.source_mean_[kept]) / self.source_sd_[kept])
        z = np.where(self.target_sd_ > 0, y - self.target_mean_, 0.0) / self._safe(self.target_sd_)
        self.alphas_ = np.asarray(self.alphas, dtype=np.float64)
        if self.selection == "loo" or len(self.alphas) == 1:
            self.errors_ = leave_one_out_errors(span, z, self.alphas_)
        self.alpha_ = float(self.alphas_[int(np.argmin(self.errors_))])
        self.basis_ = np.zeros((x.shape[1], span.rank))
        self.basis_[kept] = span.v
        self.sigma_, self.projected_ = span.sigma, span.u.T @ z

    def _holdout_errors(self, x: Array, y: Array, groups: NDArray[Any] | None) -> Array:
        unit = unit_index(len(x), groups)
        size = int(unit.max()) + 1
        held = round(self.holdout * size)
        if not 1 <= held <= size - 2:
            raise AnalysisError(
                "The held-out split leaves too little on one side.",
                expected="at least 1 unit held out and 2 to fit on",
                given=f"{held} of {size} units held out",
            )
        out = np.isin(unit, np.random.default_rng(self.seed).permutation(size)[:held])
        part = RidgeTransport(alphas=(1.0,)).fit(x[~out], y[~out])
        alphas = np.asarray(self.alphas, dtype=np.float64)
        standard = (y[out] - part.target_mean_) / self._safe(part.target_sd_) * (part.target_sd_ > 0)
        return PathErrors.of(part, x[out], standard, part.projected_).squared(alphas) / standard.size

    @staticmethod
    def _safe(sd: Array) -> Array:
        return np.where(sd > 0, sd, 1.0)

    def _coordinates(self, x: Array) -> Array:
        return (x - self.source_mean_) / self._safe(self.source_sd_) @ self.basis_

    def _gains(self, alphas: Array) -> Float[np.ndarray, "a r"]:
        return self.sigma_ / (self.sigma_**2 + alphas[:, None])

    def _predict(self, x: Array) -> Array:
        standard = (self._coordinates(x) * self._gains(np.array([self.alpha_]))[0]) @ self.projected_
        return self.target_mean_ + standard * self.target_sd_

    def coefficients(self) -> Float[np.ndarray, "dx dy"]:
        """W in standardised units (d_x, d_y) at the λ in use; zero rows where a dimension was dropped."""
        check_is_fitted(self, "alpha_")
        return (self.basis_ * self._gains(np.array([self.alpha_]))[0]) @ self.projected_

    def at(self, alpha: float) -> RidgeTransport:
        """The same fit at another λ > 0; shares all arrays."""
        check_is_fitted(self, "alpha_")
        if not alpha > 0:
            raise AnalysisError("Ridge needs a penalty.", expected="λ > 0", given=alpha)
        other = copy(self)
        other.alpha_ = float(alpha)
        return other

    def predict_path(self, X: Any, alphas: Sequence[float]) -> Float[np.ndarray, "a n dy"]:
        """Mapped rows at each λ (len(alphas), n, d_y)."""
        check_is_fitted(self, "alpha_")
        coordinates = self._coordinates(np.asarray(X, dtype=np.float64))
        gains = self._gains(np.asarray(alphas, dtype=np.float64))
        scaled = self.projected_ * self.target_sd_
        return np.stack([self.target_mean_ + (coordinates * g) @ scaled for g in gains])

    def score_path(self, X: Any, y: Any, alphas: Sequence[float] | None = None) -> Float[np.ndarray, "a"]:
        """R² in the original space at each λ (default: the fitted path), without predicting each time.

        The expanded square loses digits where R² is within 1e-12 of 1; float64 throughout.
        """
        return self.scorer(X, y).r2(self.alphas_ if alphas is None else alphas)

    def scorer(self, X: Any, y: Any) -> PathErrors:
        """Everything that the error on these rows needs, so that a moved λ costs r² operations."""
        check_is_fitted(self, "alpha_")
        target = np.asarray(y, dtype=np.float64).reshape(len(y), -1) - self.target_mean_
        return PathErrors.of(self, np.asarray(X, dtype=np.float64), target, self.projected_ * self.target_sd_)
