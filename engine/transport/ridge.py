"""Ridge regression between activations with the whole λ path from one decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from engine.errors import AnalysisError
from engine.stats.resampling import unit_index
from engine.transport.base import TransportMap, check_choice
from engine.transport.paths import PathErrors
from engine.transport.sides import Array, Side, Span

DEFAULT_ALPHAS = tuple(float(a) for a in np.logspace(-2, 6, 25))


def penalty_path(lowest: float = DEFAULT_ALPHAS[0]) -> tuple[float, ...]:
    """Candidates for λ from `lowest` to 1e6: `DEFAULT_ALPHAS`, with three more for each decade below them,
    or without those below `lowest`."""
    first = float(np.log10(DEFAULT_ALPHAS[0] / lowest))
    steps = int(np.ceil(3 * first - 1e-9))
    below = [DEFAULT_ALPHAS[0] * 10.0 ** (-first * i / steps) for i in range(steps, 0, -1)]
    return (*below, *(a for a in DEFAULT_ALPHAS if a >= lowest * (1 - 1e-9)))


def left_out_errors(
    span: Span, y: Float[np.ndarray, "n m"], alphas: Array, unit: Int[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "a"]:
    """Mean squared error of ridge on prompts left out with their whole unit, for each λ.

    The intercept is unpenalised and the standardisation frozen. For a unit G, e_G = (I − H_GG)⁻¹(y_G − ŷ_G)
    with H = U diag(σ²/(σ²+λ)) Uᵀ + 11ᵀ/n, equal to refitting without G (Allen 1974; Golub, Heath & Wahba 1979
    for one prompt; Cook & Weisberg 1982 for several). I − H is summed from λ/(σ²+λ), not subtracted, so that
    small λ with n ≤ d (where H is nearly the identity) keep their digits. With n ≤ m the squared residuals
    come from the r × r Gram of Uᵀy: the cost per λ doesn't depend on the target's width.

    Args:
        y: (n, m) centred.
        unit: (n,) unit of each prompt, 0..G−1; None leaves out one prompt at a time.

    Returns:
        (a,) inf where a unit can't be predicted from the others.
    """
    n, m = y.shape
    blocks = _blocks(np.arange(n) if unit is None else unit)
    projected = span.u.T @ y
    saturated = span.rank == n - 1  # then U and 1/√n are a complete basis, and nothing lies outside
    outside = np.zeros_like(y) if saturated else y - span.u @ projected
    wide = n <= m
    inner, cross = (projected @ projected.T, outside @ projected.T) if wide else (np.empty(0), np.empty(0))
    sizes = [_products(outside, outside, rows) for rows in blocks] if wide else []
    free = [_free(span.u, rows, saturated) for rows in blocks]
    errors = np.empty(alphas.size)
    for index, alpha in enumerate(alphas):
        kept = span.u * (alpha / (span.sigma**2 + alpha))
        if wide:
            mixed = kept @ inner
            squares = []
            for rows, size in zip(blocks, sizes, strict=True):
                across = _products(kept, cross, rows)
                squares.append(size + across + across.swapaxes(1, 2) + _products(mixed, kept, rows))
        else:
            residual = outside + kept @ projected
            squares = [_products(residual, residual, rows) for rows in blocks]
        total = 0.0
        for rows, own, square in zip(blocks, free, squares, strict=True):
            total += _unfold(own + _products(kept, span.u, rows), square)
        errors[index] = total / (n * m)
    return errors


def _blocks(unit: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, "count size"]]:
    """Prompts of every unit, units of one size in one array (count, size)."""
    order, sizes = np.argsort(unit, kind="stable"), np.bincount(unit)
    starts = np.cumsum(sizes) - sizes
    return [order[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes[sizes > 0])]


def _products(
    a: Array, b: Array, rows: Int[np.ndarray, "count size"]
) -> Float[np.ndarray, "count size size"]:
    """Inner products of a's and b's rows inside every block."""
    return np.asarray(a[rows] @ b[rows].swapaxes(1, 2))


def _free(u: Array, rows: Int[np.ndarray, "count size"], saturated: bool) -> Array:
    """Blocks of I − UUᵀ − 11ᵀ/n, the part of I − H that no penalty changes."""
    count, size = rows.shape
    if saturated:
        return np.zeros((count, size, size))
    block = np.eye(size) - 1 / len(u) - _products(u, u, rows)
    return np.maximum(block, 0.0) if size == 1 else block


def _unfold(left: Array, square: Array) -> float:
    """Σ tr(M⁻¹ S M⁻¹) over blocks M = (I − H)_GG and residual Grams S; inf where an M is singular."""
    values, vectors = np.linalg.eigh(left)
    if not (values > 0).all():
        return float("inf")
    turned = (vectors * (square @ vectors)).sum(axis=1)
    return float((turned / values**2).sum())


def ridge_gains(sigma: Array, alphas: Sequence[float] | Array) -> Float[np.ndarray, "a r"]:
    """σ/(σ² + λ) of every direction, a row for each λ."""
    return np.asarray(sigma / (sigma**2 + np.asarray(alphas, dtype=np.float64)[:, None]))


class RidgeTransport(TransportMap):
    """Ridge regression on standardised sides: min Σ_i ‖y_i − x_i W‖² + λ‖W‖² (a sum, not a mean).

    Both sides are centred and divided by their sd (n − 1); dimensions that are constant up to rounding
    are dropped (source) or predicted by their mean (target). One decomposition, of the smaller of the
    n × n and d × d Grams, serves every λ, the choice of λ, and `at`, `predict_path`, `score_path`.

    Args:
        alphas: candidates for λ, all > 0; one value is simply used.
        selection: "loo", closed-form leave-one-out error in the standardised space (leave-one-group-out where
            `fit` is given groups), or "holdout".
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

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        check_choice("selection", self.selection, ("loo", "holdout"))
        alphas = np.asarray(self.alphas, dtype=np.float64)
        if alphas.ndim != 1 or alphas.size == 0 or not (alphas > 0).all() or not np.isfinite(alphas).all():
            raise AnalysisError("Ridge needs penalties.", expected="alphas > 0, at least one", given=alphas)
        self.source_mean_, self.source_sd_ = x.moments
        self.target_mean_, self.target_sd_ = y.moments
        kept = self.source_sd_ > 0
        self.dropped_share_ = float(1 - kept.mean())
        self.dropped_targets_share_ = float((self.target_sd_ == 0).mean())
        span, self.alphas_ = x.standard_span, alphas
        self.errors_ = self._errors(x, y, groups)
        self.alpha_ = float(self.alphas_[int(np.argmin(self.errors_))])
        self.basis_ = np.zeros((x.shape[1], span.rank))
        self.basis_[kept] = span.v
        self.sigma_, self.projected_ = span.sigma, span.u.T @ y.standard

    def _errors(self, x: Side, y: Side, groups: NDArray[Any] | None) -> Array:
        """The errors that λ is chosen by; one λ needs no choice, and NaN is its error."""
        if self.alphas_.size == 1:
            return np.full(1, np.nan)
        if self.selection == "holdout":
            return self._holdout_errors(x.rows, y.rows, groups)
        unit = unit_index(x.shape[0], groups)
        if groups is not None and unit.max() == 0:
            raise AnalysisError(
                "One group holds every prompt, so none can be left out.",
                expected="at least 2 groups",
                given="1 group",
                next_step="Leave groups out, or set one λ.",
            )
        return left_out_errors(x.standard_span, y.standard, self.alphas_, unit)

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
        coordinates, none = part._coordinates(x[out]), np.zeros(standard.shape[1])
        path = PathErrors.of(partial(ridge_gains, part.sigma_), coordinates, part.projected_, none, standard)
        return path.squared(alphas) / standard.size

    @staticmethod
    def _safe(sd: Array) -> Array:
        return np.where(sd > 0, sd, 1.0)

    def _coordinates(self, x: Array) -> Array:
        return (x - self.source_mean_) / self._safe(self.source_sd_) @ self.basis_

    def _gains(self, alphas: Sequence[float] | Array) -> Float[np.ndarray, "a r"]:
        return ridge_gains(self.sigma_, alphas)

    def _predict(self, x: Array) -> Array:
        standard = (self._coordinates(x) * self._gains([self.alpha_])[0]) @ self.projected_
        return self.target_mean_ + standard * self.target_sd_

    def coefficients(self) -> Float[np.ndarray, "dx dy"]:
        """W in standardised units (d_x, d_y) at the λ in use; zero rows where a dimension was dropped."""
        check_is_fitted(self, "alpha_")
        return (self.basis_ * self._gains([self.alpha_])[0]) @ self.projected_

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
        gains = self._gains(alphas)
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
        target = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        written = self.projected_ * self.target_sd_
        coordinates = self._coordinates(np.asarray(X, dtype=np.float64))
        gains = partial(ridge_gains, self.sigma_)  # not a method, which would keep the whole map
        return PathErrors.of(gains, coordinates, written, self.target_mean_, target)
