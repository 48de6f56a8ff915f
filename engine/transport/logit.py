"""Ridge inside the directions that the unembedding reads."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg
from sklearn.utils.validation import check_is_fitted

from engine.errors import AnalysisError
from engine.transport.base import TransportMap, check_choice
from engine.transport.paths import MappedLengths, PathErrors, Rows
from engine.transport.ridge import DEFAULT_ALPHAS, RidgeTransport
from engine.transport.sides import CONSTANT_RTOL, KEPT, Array, Side
from engine.transport.simple import Identity, MomentMatching


def unembedding_basis(
    unembedding: Float[np.ndarray, "vocab d"],
    n_components: int,
    gain: Float[np.ndarray, " d"] | None = None,
    other: Float[np.ndarray, "other_vocab d"] | None = None,
    other_gain: Float[np.ndarray, " d"] | None = None,
) -> Float[np.ndarray, "d k"]:
    """Leading right singular vectors (d, k) of W·diag(gain), or of two such matrices stacked.

    Computed from the smaller of the two Grams, so a large vocabulary costs one product. A matrix made by
    `compress_unembedding` has the same leading vectors and is cheap.

    Args:
        gain: of the final norm (for families that add 1 to it, after adding).
    """
    return _leading(unembedding, n_components, gain, other, other_gain)[0]


def compress_unembedding(
    unembedding: Float[np.ndarray, "vocab d"],
    size: int,
    gain: Float[np.ndarray, " d"] | None = None,
    other: Float[np.ndarray, "other_vocab d"] | None = None,
    other_gain: Float[np.ndarray, " d"] | None = None,
) -> Float[np.ndarray, "size d"]:
    """diag(σ)Vᵀ of W·diag(gain), or of two such matrices stacked, cut to its leading `size` rows (at most d):
    the same leading right singular vectors and values in far fewer rows."""
    rows, d = np.shape(unembedding)
    rows += 0 if other is None else len(other)
    basis, sigma = _leading(unembedding, min(size, rows, d), gain, other, other_gain)
    return (basis * sigma).T


def _leading(
    unembedding: Array,
    n_components: int,
    gain: Array | None = None,
    other: Array | None = None,
    other_gain: Array | None = None,
) -> tuple[Array, Array]:
    """Right singular vectors (d, k) and singular values (k,)."""
    d = np.shape(unembedding)[1]
    if other is not None and np.shape(other)[1] != d:
        raise AnalysisError(
            "A joint logit subspace needs one width.", expected=f"width {d}", given=np.shape(other)[1]
        )
    parts = [(unembedding, gain)] + ([] if other is None else [(other, other_gain)])
    scaled = [
        np.asarray(w, dtype=np.float64) * (1.0 if g is None else np.asarray(g, dtype=np.float64))
        for w, g in parts
    ]
    rows = sum(len(w) for w in scaled)
    if not 1 <= n_components <= min(d, rows):
        raise AnalysisError(
            "No such subspace.", expected=f"1 ≤ n_components ≤ {min(d, rows)}", given=n_components
        )
    if rows < d:
        stacked = np.vstack(scaled)
        values, vectors = linalg.eigh(stacked @ stacked.T, subset_by_index=[rows - n_components, rows - 1])
        sigma = np.sqrt(np.maximum(values[::-1], np.finfo(np.float64).tiny))
        return stacked.T @ vectors[:, ::-1] / sigma, sigma
    moment = np.zeros((d, d))
    for w in scaled:
        moment += w.T @ w
    values, vectors = linalg.eigh(moment, subset_by_index=[d - n_components, d - 1])
    return vectors[:, ::-1], np.sqrt(np.maximum(values[::-1], 0.0))


@dataclass(frozen=True)
class _View:
    """Source and target rows (n, d) with what no number of directions changes; μ is the train target's mean.

    Attributes:
        off, kept: y − μ and b(x) − μ. source, off_inside, kept_inside: (n, k) coordinates of x, off and kept
            in all fitted directions. mean_inside: μ's (k,).
        total: Σ‖y − ȳ‖², 0 where the target doesn't vary.
    """

    x: Array
    y: Array
    off: Array
    kept: Array
    source: Array
    off_inside: Array
    kept_inside: Array
    mean: Array
    mean_inside: Array
    total: float
    _seen: list[Any] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, x: Array, y: Array, kept: Array, mean: Array, basis: Array) -> _View:
        """From the rows, what the outside map makes of them, μ and the basis."""
        off, inside = y - mean, kept - mean
        total = float(((y - y.mean(axis=0)) ** 2).sum())
        varies = total > CONSTANT_RTOL**2 * float((y**2).sum())
        one, two, three = (rows @ basis for rows in (x, off, inside))
        return cls(x, y, off, inside, one, two, three, mean, mean @ basis, total if varies else 0.0)

    @cached_property
    def missed(self) -> float:
        """Σ‖y − b(x)‖²."""
        return float(((self.off - self.kept) ** 2).sum())

    @cached_property
    def products(self) -> tuple[Array, Array, Array, Array, Array]:
        """Row by row: |off|², |kept|², off·kept, μ·off, μ·kept."""
        pairs = ((self.off, self.off), (self.kept, self.kept), (self.off, self.kept))
        one, two, both = (np.einsum("nd,nd->n", a, b) for a, b in pairs)
        return one, two, both, self.off @ self.mean, self.kept @ self.mean

    def gram(self, rows: Rows) -> Array:
        """(m, m) inner products of kept over some rows; remembered for the rows asked for last."""
        if not self._seen or self._seen[0] is not rows:
            self._seen[:] = [rows, self.kept[rows] @ self.kept[rows].T]
        return np.asarray(self._seen[1])

    def errors(self, moved: Array) -> Array:
        """‖y − ŷ‖² (n,); `moved` as for `lengths`."""
        k = moved.shape[1]
        off, kept = self.off_inside[:, :k], self.kept_inside[:, :k]
        own, outside, both = self.products[:3]
        left = own - 2 * both + outside - ((off - kept) ** 2).sum(axis=1)
        return np.asarray(np.maximum(left, 0.0) + ((off - moved) ** 2).sum(axis=1))

    def lengths(self, moved: Array) -> MappedLengths:
        """Of ŷ, which is b(x) but for its first k coordinates; `moved` (n, k) are those, less μ's."""
        k = moved.shape[1]
        off, kept, mean = self.off_inside[:, :k], self.kept_inside[:, :k], self.mean_inside[:k]
        own, outside, both, along, toward = self.products
        deviation = np.maximum(outside - (kept**2).sum(axis=1) + (moved**2).sum(axis=1), 0.0)
        dot = both - (off * kept).sum(axis=1) + (off * moved).sum(axis=1)
        toward = toward + (moved - kept) @ mean
        size = float(self.mean @ self.mean)
        return MappedLengths(
            deviation=np.sqrt(deviation),
            target_deviation=np.sqrt(own),
            deviation_dot=dot,
            length=np.sqrt(np.maximum(size + 2 * toward + deviation, 0.0)),
            target_length=np.sqrt(np.maximum(size + 2 * along + own, 0.0)),
            dot=size + toward + along + dot,
            product=lambda at: self.gram(at) - kept[at] @ kept[at].T + moved[at] @ moved[at].T,
        )


class LogitSubspaceRidge(TransportMap):
    """Ridge inside the leading right singular directions of the unembedding, a simple map outside.

    With B the (d, k) basis: ŷ = b(x) + (r(xB) − b(x)B) Bᵀ, r a `RidgeTransport` between coordinates and b
    moment matching or the identity. The part of ŷ outside B is b's.

    Args:
        unembedding: (V, d) of the target model. source_unembedding: of the source, for joint=True.
        joint: take the directions of both unembeddings stacked.
        n_components: k. gain, source_gain: final norms' gains (d,), folded in.
        outside: "moments" or "identity". alphas, selection: see `RidgeTransport`.

    Attributes:
        basis_: (d, k) column-orthonormal. ridge_, outside_: the two fitted maps.
    """

    same_width = True

    def __init__(
        self,
        unembedding: Float[np.ndarray, "vocab d"],
        n_components: int = 64,
        joint: bool = False,
        source_unembedding: Float[np.ndarray, "source_vocab d"] | None = None,
        gain: Float[np.ndarray, " d"] | None = None,
        source_gain: Float[np.ndarray, " d"] | None = None,
        outside: str = "moments",
        alphas: Sequence[float] = DEFAULT_ALPHAS,
        selection: str = "loo",
    ) -> None:
        self.unembedding = unembedding
        self.n_components = n_components
        self.joint = joint
        self.source_unembedding = source_unembedding
        self.gain = gain
        self.source_gain = source_gain
        self.outside = outside
        self.alphas = alphas
        self.selection = selection

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        check_choice("outside", self.outside, ("moments", "identity"))
        if self.unembedding is None or (self.joint and self.source_unembedding is None):
            raise AnalysisError(
                "A logit subspace needs the unembedding; a joint one needs both unembeddings.",
                expected="unembedding (V, d), and source_unembedding (V, d) for joint=True",
                given="None",
                next_step="Pass what is missing, or set joint=False.",
            )
        if np.shape(self.unembedding)[1] != x.shape[1]:
            raise AnalysisError(
                "The unembedding reads another width than the activations have.",
                expected=f"width {x.shape[1]}",
                given=f"width {np.shape(self.unembedding)[1]}",
            )
        other = self.source_unembedding if self.joint else None
        self.basis_ = unembedding_basis(
            self.unembedding, self.n_components, self.gain, other, self.source_gain
        )
        self._whole_basis = self.basis_
        self.outside_ = (MomentMatching() if self.outside == "moments" else Identity()).fit_sides(x, y)
        self._fitted_on = (x.rows @ self.basis_, y.rows @ self.basis_, groups)
        self._views: list[_View] = []  # shared by the maps of fewer directions
        self._fit_inside()

    def _fit_inside(self) -> None:
        x, y, groups = self._fitted_on
        k = self.basis_.shape[1]
        inside = RidgeTransport(self.alphas, selection=self.selection)
        self.ridge_ = inside.fit_sides(Side(x[:, :k]), Side(y[:, :k]), groups)

    def at_components(self, k: int) -> LogitSubspaceRidge:
        """The map of the first k directions, k at most those fitted: the ridge is fitted again on the kept
        coordinates, the activations aren't read.

        Raises AnalysisError on a map loaded from a file, which doesn't hold them.
        """
        check_is_fitted(self, "ridge_")
        kept = getattr(self, "_fitted_on", None)
        most = 0 if kept is None else kept[0].shape[1]
        if not 1 <= k <= most:
            raise AnalysisError(
                "The map doesn't hold the coordinates of so many directions.",
                expected=f"1 ≤ k ≤ {most}" if most else "a map fitted in this process",
                given=k if most else "a loaded map",
                next_step="Fit it again on the activations of the store.",
            )
        other = copy(self)
        other.n_components, other.basis_ = k, self._whole_basis[:, :k]
        other._fit_inside()
        return other

    def at(self, alpha: float) -> LogitSubspaceRidge:
        """The same fit at another λ > 0 of the inner ridge."""
        check_is_fitted(self, "ridge_")
        other = copy(self)
        other.ridge_ = self.ridge_.at(alpha)
        return other

    def scorer(self, X: Any, y: Any) -> PathErrors:
        """Errors on these rows, in the whole space, at any λ of the inner ridge."""
        check_is_fitted(self, "ridge_")
        seen, k = self._view(X, y), self.basis_.shape[1]
        off, kept = seen.off_inside[:, :k], seen.kept_inside[:, :k]
        left = seen.missed - float(((off - kept) ** 2).sum())
        inner = self.ridge_.scorer(seen.source[:, :k], off + seen.mean_inside[:k])
        return replace(inner, total=seen.total, outside=max(left, 0.0))

    def judged(self, X: Any, y: Any) -> tuple[MappedLengths, float]:
        """Lengths and angles of the mapped rows about the train target's mean, and R², without the rows."""
        check_is_fitted(self, "ridge_")
        seen, k = self._view(X, y), self.basis_.shape[1]
        moved = self.ridge_.predict(seen.source[:, :k]) - seen.mean_inside[:k]
        missed = float(seen.errors(moved).sum())
        return seen.lengths(moved), 1 - missed / seen.total if seen.total > 0 else float("nan")

    def _view(self, X: Any, y: Any) -> _View:
        """Rows in all fitted directions; kept for the arrays that were asked for last, whatever k."""
        x, target = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        target = target if target.ndim == 2 else target.reshape(len(x), -1)
        views: list[_View] = self.__dict__.get("_views", [])
        for view in views:
            if view.x is x and view.y is target:
                return view
        basis = getattr(self, "_whole_basis", self.basis_)
        found = _View.of(x, target, self.outside_.predict(x), self.outside_.target_mean_, basis)
        views.append(found)
        del views[:-KEPT]
        return found

    def _predict(self, x: Array) -> Array:
        kept = self.outside_.predict(x)
        return kept + (self.ridge_.predict(x @ self.basis_) - kept @ self.basis_) @ self.basis_.T
