"""Scores of a map along its path, from products that don't grow with the width of the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.transport.sides import CONSTANT_RTOL, Along, Array

Rows = NDArray[np.intp] | slice


@dataclass(frozen=True)
class PathErrors:
    """Rows mapped by ŷ = μ + C·diag(w)·P, scored for any weights w: λ and k only change the weights.

    Σ‖y − ŷ‖² = Σ‖y − μ‖² − 2 w·diag(Cᵀ(y − μ)Pᵀ) + wᵀ(CᵀC ∘ PPᵀ)w, so a moved λ or k costs r² operations.
    The expanded square loses digits where R² is within 1e-12 of 1; float64 throughout.

    Attributes:
        weights: weights (a, r) of the path's parameters (a,).
        coordinates: C (n, r). inner: PPᵀ (r, r). cross: (y − μ)Pᵀ (n, r). mean_cross: μPᵀ (r,).
        sizes: ‖y − μ‖² (n,). along: μ·(y − μ) (n,). mean_size: ‖μ‖².
        total: Σ‖y − ȳ‖² about the rows' own mean, 0 where the target doesn't vary.
        outside: squared error that no weight changes, of parts of the space that the path leaves alone.
    """

    weights: Callable[[Any], Array]
    coordinates: Array
    inner: Array
    cross: Array
    mean_cross: Array
    sizes: Array
    along: Array
    mean_size: float
    total: float
    outside: float = 0.0

    @classmethod
    def of(
        cls, weights: Callable[[Any], Array], coordinates: Array, written: Array, mean: Array, y: Array
    ) -> PathErrors:
        """From C (n, r), P (r, d), μ (d,) and the rows' target y (n, d)."""
        off = y - mean
        total = float(((y - y.mean(axis=0)) ** 2).sum())
        constant = total <= CONSTANT_RTOL**2 * float((y**2).sum())
        return cls(
            weights,
            coordinates,
            written @ written.T,
            off @ written.T,
            written @ mean,
            (off**2).sum(axis=1),
            off @ mean,
            float(mean @ mean),
            0.0 if constant else total,
        )

    @classmethod
    def inside(
        cls, weights: Callable[[Any], Array], coordinates: Array, written: Array, target: Along
    ) -> PathErrors:
        """From C (n, r) and a P that lies in the target's span: `written` (r, s) is P·v, and PPᵀ, (y − μ)Pᵀ
        and μPᵀ don't meet the width. μ is the span's mean."""
        return cls(
            weights,
            coordinates,
            written @ written.T,
            target.coordinates @ written.T,
            written @ target.mean_coordinates,
            target.sizes,
            target.along,
            target.mean_size,
            target.total,
        )

    @cached_property
    def _linear(self) -> Array:
        return np.asarray((self.coordinates * self.cross).sum(axis=0))

    @cached_property
    def _square(self) -> Array:
        return np.asarray((self.coordinates.T @ self.coordinates) * self.inner)

    def squared(self, parameters: Sequence[float] | Array) -> Float[np.ndarray, "a"]:
        """Sum of squared errors at each of the path's parameters."""
        w = self.weights(parameters)
        fitted = ((w @ self._square) * w).sum(axis=1) - 2 * w @ self._linear
        return np.asarray(float(self.sizes.sum()) + fitted + self.outside)

    def r2(self, parameters: Sequence[float] | Array) -> Float[np.ndarray, "a"]:
        """Variance-weighted R² at each; NaN where the target doesn't vary."""
        missed = self.squared(parameters)
        return 1 - missed / self.total if self.total > 0 else np.full(missed.shape, np.nan)

    def mapped(self, parameter: float) -> MappedLengths:
        """Lengths, angles and Grams of the mapped rows at one parameter."""
        scaled = self.coordinates * self.weights([parameter])[0]
        half = scaled @ self.inner
        own = np.maximum((half * scaled).sum(axis=1), 0.0)
        dot = (scaled * self.cross).sum(axis=1)
        toward = scaled @ self.mean_cross
        return MappedLengths(
            deviation=np.sqrt(own),
            target_deviation=np.sqrt(self.sizes),
            deviation_dot=dot,
            length=np.sqrt(np.maximum(self.mean_size + 2 * toward + own, 0.0)),
            target_length=np.sqrt(np.maximum(self.mean_size + 2 * self.along + self.sizes, 0.0)),
            dot=self.mean_size + toward + self.along + dot,
            product=lambda rows: half[rows] @ scaled[rows].T,
        )


@dataclass(frozen=True)
class MappedLengths:
    """What amplitude, cosines and CKA need of mapped rows ŷ and their target y, without the rows.

    Attributes:
        deviation, target_deviation: ‖ŷ − μ‖, ‖y − μ‖ (n,), μ the train target's mean. deviation_dot: their
            inner products.
        length, target_length, dot: the same of ŷ and y themselves.
        product: makes `gram` of some rows.
    """

    deviation: Array
    target_deviation: Array
    deviation_dot: Array
    length: Array
    target_length: Array
    dot: Array
    product: Callable[[Rows], Array]

    def gram(self, rows: Rows) -> Array:
        """(m, m) inner products of ŷ − μ over some rows, not centred over them."""
        return self.product(rows)

    @property
    def errors(self) -> Array:
        """‖y − ŷ‖² (n,)."""
        both = self.target_deviation**2 + self.deviation**2
        return np.maximum(both - 2 * self.deviation_dot, 0.0)

    @classmethod
    def of(cls, mapped: Array, y: Array, mean: Array) -> MappedLengths:
        """From the rows themselves."""
        off, target = mapped - mean, y - mean
        return cls(
            np.linalg.norm(off, axis=1),
            np.linalg.norm(target, axis=1),
            (off * target).sum(axis=1),
            np.linalg.norm(mapped, axis=1),
            np.linalg.norm(y, axis=1),
            (mapped * y).sum(axis=1),
            lambda rows: off[rows] @ off[rows].T,
        )
