"""Orthogonal maps: Procrustes between whitened activations, and between principal components."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg
from sklearn.utils.validation import check_is_fitted

from engine.errors import AnalysisError
from engine.transport.base import TransportMap, check_choice
from engine.transport.paths import PathErrors
from engine.transport.sides import Array, Side, Span

EIGENVALUE_FLOOR = 1e-6
"""Eigenvalues of a shrunk covariance are raised to this share of the largest."""


def shrunk_eigenvalues(span: Span, shrinkage: float) -> tuple[Array, float]:
    """Eigenvalues of (1 − γ)Σ + γ tr(Σ)/d·I on the data's span (r,), and the one of all other directions.

    Both are floored at 1e-6 of the largest.
    """
    variances = span.variances
    isotropic = shrinkage * float(variances.sum()) / span.mean.size
    inside = (1 - shrinkage) * variances + isotropic
    floor = EIGENVALUE_FLOOR * float(inside.max(initial=0.0))
    return np.maximum(inside, floor), max(isotropic, floor)


def rank_weights(scales: Array, ks: Sequence[float] | Array) -> Float[np.ndarray, "a r"]:
    """s_k for the first k directions and 0 for the others, a row for each k."""
    ranks = np.clip(np.asarray(ks, dtype=np.intp), 0, scales.size)
    each = np.concatenate([[0.0], scales])[ranks]
    return np.asarray(each[:, None] * (np.arange(scales.size) < ranks[:, None]))


def _not_kept(what: str) -> AnalysisError:
    return AnalysisError(
        f"This map was loaded from a file and no longer holds {what}.",
        expected="a map fitted in this process",
        given="a loaded map",
        next_step="Fit it again on the activations of the store.",
    )


class ScaledProcrustes(TransportMap):
    """Whiten both sides, rotate by the best orthogonal map of rank k, scale, colour again.

    C = (1 − γ)Σ + γ tr(Σ)/d·I per side (Σ divides by n − 1; eigenvalues floored at 1e-6 of the largest),
    M = X_wᵀY_w = U S Vᵀ, Q_k = U_k V_kᵀ and
    ŷ = s_k (x − μ_x) C_x^{-1/2} Q_k C_y^{1/2} + μ_y, with s_k = Σ_{i≤k} S_i / ‖X_w U_k‖_F², the least-squares
    scale of the truncated map (Schönemann 1966; Gower & Dijksterhuis 2004). The widths may differ.

    The rows of X_w and Y_w lie in the span of the centred data, so U_k and V_k do too for every
    k ≤ rank(M): the shrinkage's isotropic part enters through the eigenvalues on the span, and all
    is computed from an r × r core with r ≤ min(n − 1, d). No d × d matrix is formed when n < d.
    With γ = 0 and n ≤ max(d_x, d_y) + 1 all S_i are equal, so only the full-rank map is unique.

    Args:
        shrinkage: γ in [0, 1].
        n_components: k; None, or anything above it, means rank(M).
        scale: "fit" for s_k above; "seed" divides by ‖X_w‖_F² instead, which shrinks truncated maps.

    Attributes:
        source_mean_ (d_x,), target_mean_ (d_y,).
        left_: (d_x, r) = C_x^{-1/2} U. right_: (r, d_y) = Vᵀ C_y^{1/2}.
        singular_values_: (r,). scales_: (r,) s_k for k = 1..r. rank_: r = rank(M). n_components_: k in use.
        target_basis_: (d_y, r_y) span of the centred target. target_eigenvalues_: (r_y,) of C_y there;
        target_outside_: C_y's eigenvalue elsewhere.
    """

    def __init__(self, shrinkage: float = 0.05, n_components: int | None = None, scale: str = "fit") -> None:
        self.shrinkage = shrinkage
        self.n_components = n_components
        self.scale = scale

    def fit(self, X: Any, y: Any, groups: NDArray[Any] | None = None) -> Self:
        """See `TransportMap.fit`."""
        super().fit(X, y, groups)
        self.__dict__ |= {"left_": self.left_, "right_": self.right_}
        return self

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        self._solve(x.span, y.span)

    @cached_property
    def left_(self) -> Array:
        """Computed when it is first asked for: moving γ or k takes only its coordinates in the span."""
        return np.asarray(self._spans[0].v @ self._inside[0])

    @cached_property
    def right_(self) -> Array:
        """See `left_`."""
        return np.asarray(self._inside[1] @ self._spans[1].v.T)

    def _solve(self, x: Span, y: Span) -> None:
        check_choice("scale", self.scale, ("fit", "seed"))
        if not 0 <= self.shrinkage <= 1:
            raise AnalysisError("Shrinkage is a share.", expected="0 ≤ shrinkage ≤ 1", given=self.shrinkage)
        ex, _ = shrunk_eigenvalues(x, self.shrinkage)
        ey, outside = shrunk_eigenvalues(y, self.shrinkage)
        a, b = x.sigma / np.sqrt(ex), y.sigma / np.sqrt(ey)
        core = (x.u * a).T @ (y.u * b)
        left, values, right = linalg.svd(core, full_matrices=False)
        limit = max(core.shape) * np.finfo(np.float64).eps * values.max(initial=0.0)
        self.rank_ = int((values > limit).sum())
        left, right = left[:, : self.rank_], right[: self.rank_]
        self.singular_values_ = values[: self.rank_]
        energy = np.cumsum(((a[:, None] * left) ** 2).sum(axis=0))
        below = energy if self.scale == "fit" else np.full(self.rank_, float((a**2).sum()))
        self.scales_ = np.cumsum(self.singular_values_) / below
        self.source_mean_, self.target_mean_ = x.mean, y.mean
        self._inside = (left / np.sqrt(ex)[:, None], right * np.sqrt(ey))
        for name in ("left_", "right_"):  # of the solution before
            self.__dict__.pop(name, None)
        self.target_basis_, self.target_eigenvalues_, self.target_outside_ = y.v, ey, outside
        self._spans = (x, y)
        self.n_components_ = self._clip(self.n_components)

    def _clip(self, k: int | None) -> int:
        if k is not None and k < 1:
            raise AnalysisError("No such rank.", expected="k ≥ 1, or None for the full rank", given=k)
        return self.rank_ if k is None else min(int(k), self.rank_)

    def _coordinates(self, x: Array, k: int) -> Array:
        return (x - self.source_mean_) @ self.left_[:, :k]

    def _scale(self, k: int) -> float:
        return float(self.scales_[k - 1]) if k else 0.0

    def _predict(self, x: Array) -> Array:
        k = self.n_components_
        return self.target_mean_ + self._scale(k) * self._coordinates(x, k) @ self.right_[:k]

    def at_rank(self, k: int | None) -> ScaledProcrustes:
        """The same fit truncated to rank k (clipped to rank(M)); shares all arrays, nothing is recomputed."""
        check_is_fitted(self, "rank_")
        other = copy(self)
        other.n_components, other.n_components_ = k, self._clip(k)
        return other

    def rank_path(self, ks: Sequence[int | None]) -> tuple[ScaledProcrustes, ...]:
        """Truncations to each rank from the one decomposition; None is the full rank."""
        return tuple(self.at_rank(k) for k in ks)

    def predict_path(self, X: Any, ks: Sequence[int]) -> Float[np.ndarray, "k n d"]:
        """Mapped rows at each rank (len(ks), n, d_y), the coordinates being computed once."""
        check_is_fitted(self, "rank_")
        ranks = [self._clip(k) for k in ks]
        coordinates = self._coordinates(np.asarray(X, dtype=np.float64), max(ranks, default=0))
        return np.stack(
            [self.target_mean_ + self._scale(k) * coordinates[:, :k] @ self.right_[:k] for k in ranks]
        )

    def scorer(self, X: Any, y: Any) -> PathErrors:
        """Everything that the error on these rows needs, so that a moved k costs r² operations."""
        check_is_fitted(self, "rank_")
        rows, target = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        target = target if target.ndim == 2 else target.reshape(len(target), -1)
        weights = partial(rank_weights, self.scales_)  # not a method, which would keep the whole map
        if hasattr(self, "_inside"):
            (x, out), (left, right) = self._spans, self._inside
            return PathErrors.inside(weights, x.along(rows).coordinates @ left, right, out.along(target))
        coordinates = self._coordinates(rows, self.rank_)
        return PathErrors.of(weights, coordinates, self.right_, self.target_mean_, target)

    def with_shrinkage(self, shrinkage: float) -> ScaledProcrustes:
        """Another γ from the kept decompositions of both sides: one r × r SVD, features aren't read.

        Raises AnalysisError on a map loaded from a file, which doesn't hold them.
        """
        other = copy(self)
        other.shrinkage = shrinkage
        other._solve(*self._kept_spans())
        return other

    def randomised(self, seed: int) -> ScaledProcrustes:
        """Control: the same whitening, colouring, rank and scale, with a random rotation of the span.

        U_k and V_k are replaced by Haar-random frames inside the two spans.
        """
        x, y = self._kept_spans()
        rng, k = np.random.default_rng(seed), self.n_components_
        u, _ = np.linalg.qr(rng.normal(size=(x.rank, k)))
        v, _ = np.linalg.qr(rng.normal(size=(y.rank, k)))
        other = copy(self)
        ex, _ = shrunk_eigenvalues(x, self.shrinkage)
        other.left_ = x.v @ (u / np.sqrt(ex)[:, None])
        other.right_ = (v.T * np.sqrt(self.target_eigenvalues_)) @ y.v.T
        other.rank_, other.scales_ = k, np.full(k, self._scale(k))
        del other._inside
        return other

    def output_basis(self, k: int | None = None) -> Float[np.ndarray, "d k"]:
        """Column-orthonormal basis (d_y, k) of what a rank-k map writes: orth(C_y^{1/2} V_k)."""
        check_is_fitted(self, "rank_")
        size = self.n_components_ if k is None else self._clip(k)
        basis, _ = np.linalg.qr(self.right_[:size].T)
        return basis

    def score_whitened(self, X: Any, y: Any) -> float:
        """Variance-weighted R² of the target whitened by C_y^{-1/2}, where all directions count alike.

        Directions outside the span of the training target have C_y's isotropic eigenvalue; the map
        can't predict them, and they count as missed. NaN where the training target doesn't vary.
        """
        check_is_fitted(self, "rank_")
        if not self.target_eigenvalues_.size:
            return float("nan")
        target = np.asarray(y, dtype=np.float64).reshape(len(y), -1) - self.target_mean_
        mapped = np.asarray(self.predict(X)).reshape(len(target), -1) - self.target_mean_
        gain = 1 / np.sqrt(self.target_eigenvalues_)

        def whiten(rows: Array) -> tuple[Array, Array]:
            inside = rows @ self.target_basis_
            return inside * gain, rows - inside @ self.target_basis_.T

        (near, far), (near_hat, _) = whiten(target), whiten(mapped)
        weight = 0.0 if self.target_basis_.shape[1] == target.shape[1] else 1 / self.target_outside_
        missed = ((near - near_hat) ** 2).sum() + weight * (far**2).sum()
        total = ((near - near.mean(0)) ** 2).sum() + weight * ((far - far.mean(0)) ** 2).sum()
        return float(1 - missed / total) if total > 0 else float("nan")

    def _kept_spans(self) -> tuple[Span, Span]:
        check_is_fitted(self, "rank_")
        spans: tuple[Span, Span] | None = getattr(self, "_spans", None)
        if spans is None:
            raise _not_kept("the decomposition of its activations")
        return spans


class PCAProcrustes(TransportMap):
    """Orthogonal Procrustes between principal-component scores: ŷ = (x − μ_x) B_x R B_yᵀ + μ_y.

    R = UVᵀ from the SVD of T_xᵀT_y (Schönemann 1966), T the scores on each side's leading components.
    There is no scale: lengths inside the components are kept as they are.

    Args:
        n_components: components per side, clipped to each side's rank; None keeps all.
        joint: one PCA of both sides' centred rows stacked (widths must agree) instead of one per side.

    Attributes:
        source_basis_ (d_x, k_x), target_basis_ (d_y, k_y): column-orthonormal. rotation_: (k_x, k_y).
        singular_values_ of T_xᵀT_y. source_mean_, target_mean_.
    """

    def __init__(self, n_components: int | None = None, joint: bool = False) -> None:
        self.n_components = n_components
        self.joint = joint

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # a rotation can't follow the target's amplitude
        return tags

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        if self.n_components is not None and self.n_components < 1:
            raise AnalysisError("No such size.", expected="n_components ≥ 1 or None", given=self.n_components)
        self.source_mean_, self.target_mean_ = x.moments[0], y.moments[0]
        if self.joint:
            if x.shape[1] != y.shape[1]:
                raise AnalysisError(
                    "A joint PCA needs one space for both sides.",
                    expected="equal widths",
                    given=f"widths {x.shape[1]} and {y.shape[1]}",
                    next_step="Use joint=False.",
                )
            one, two = x.rows - self.source_mean_, y.rows - self.target_mean_
            basis = Span.of(np.vstack([one, two])).v
            self._fitted_on = (basis, basis, one @ basis, two @ basis)
        else:
            a, b = x.span, y.span
            self._fitted_on = (a.v, b.v, a.u * a.sigma, b.u * b.sigma)
        self._rotate()

    def _rotate(self) -> None:
        k = self.n_components
        bases, scores = self._fitted_on[:2], self._fitted_on[2:]
        self.source_basis_, self.target_basis_ = (basis[:, :k] for basis in bases)
        left, self.singular_values_, right = linalg.svd(
            scores[0][:, :k].T @ scores[1][:, :k], full_matrices=False
        )
        # directions that only one side varies in have no partner: any rotation of them would be arbitrary
        limit = max(left.shape[0], right.shape[1]) * np.finfo(np.float64).eps
        shared = self.singular_values_ > limit * self.singular_values_.max(initial=0.0)
        self.rotation_ = left[:, shared] @ right[shared]

    def at_rank(self, k: int | None) -> PCAProcrustes:
        """The rotation between the first k components of each side, from the kept scores.

        Raises AnalysisError on a map loaded from a file, which doesn't hold them.
        """
        check_is_fitted(self, "rotation_")
        if not hasattr(self, "_fitted_on"):
            raise _not_kept("the scores of its activations")
        if k is not None and k < 1:
            raise AnalysisError("No such rank.", expected="k ≥ 1, or None for all", given=k)
        other = copy(self)
        other.n_components = k
        other._rotate()
        return other

    def _predict(self, x: Array) -> Array:
        scores = (x - self.source_mean_) @ self.source_basis_
        return self.target_mean_ + scores @ self.rotation_ @ self.target_basis_.T
