"""Ridge inside the directions that the unembedding reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import linalg

from engine.analysis.transport.base import Array, TransportMap, check_choice
from engine.analysis.transport.ridge import DEFAULT_ALPHAS, RidgeTransport
from engine.analysis.transport.simple import Identity, MomentMatching
from engine.errors import AnalysisError


def unembedding_basis(
    unembedding: Float[np.ndarray, "vocab d"],
    n_components: int,
    gain: Float[np.ndarray, " d"] | None = None,
    other: Float[np.ndarray, "other_vocab d"] | None = None,
    other_gain: Float[np.ndarray, " d"] | None = None,
) -> Float[np.ndarray, "d k"]:
    """Leading right singular vectors (d, k) of W·diag(gain), or of two such matrices stacked.

    Computed from the leading eigenvectors of the d × d WᵀW, so the vocabulary's size costs one product.

    Args:
        gain: of the final norm (for families that add 1 to it, after adding).
    """

    def second_moment(matrix: Array, scale: Array | None) -> Array:
        w = np.asarray(matrix, dtype=np.float64)
        w = w if scale is None else w * np.asarray(scale, dtype=np.float64)
        return w.T @ w

    total = second_moment(unembedding, gain)
    d = total.shape[0]
    if other is not None and np.shape(other)[1] != d:
        raise AnalysisError(
            "A joint logit subspace needs one width.", expected=f"width {d}", given=np.shape(other)[1]
        )
    if not 1 <= n_components <= d:
        raise AnalysisError("No such subspace.", expected=f"1 ≤ n_components ≤ {d}", given=n_components)
    if other is not None:
        total = total + second_moment(other, other_gain)
    _, vectors = linalg.eigh(total, subset_by_index=[d - n_components, d - 1])
    return vectors[:, ::-1]


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

    def _fit(self, x: Array, y: Array) -> None:
        check_choice("outside", self.outside, ("moments", "identity"))
        if self.unembedding is None or (self.joint and self.source_unembedding is None):
            raise AnalysisError(
                "A logit subspace needs the unembedding; a joint one needs both unembeddings.",
                expected="unembedding (V, d), and source_unembedding (V, d) for joint=True",
                given="None",
                next_step="Pass what is missing, or set joint=False.",
            )
        other = self.source_unembedding if self.joint else None
        self.basis_ = unembedding_basis(
            self.unembedding, self.n_components, self.gain, other, self.source_gain
        )
        if self.basis_.shape[0] != x.shape[1]:
            raise AnalysisError(
                "The unembedding reads another width than the activations have.",
                expected=f"width {x.shape[1]}",
                given=f"width {self.basis_.shape[0]}",
            )
        self.ridge_ = RidgeTransport(self.alphas, selection=self.selection).fit(
            x @ self.basis_, y @ self.basis_
        )
        self.outside_ = (MomentMatching() if self.outside == "moments" else Identity()).fit(x, y)

    def _predict(self, x: Array) -> Array:
        kept = self.outside_.predict(x)
        return kept + (self.ridge_.predict(x @ self.basis_) - kept @ self.basis_) @ self.basis_.T
