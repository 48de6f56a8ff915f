"""The two sides of a map: activations of the train prompts with what is computed of them, kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.stats.resampling import ordered_units, unit_index, unit_permutations
from engine.stats.sampling import sample_rows

Array = NDArray[np.float64]

CONSTANT_RTOL = 1e-6
"""A dimension whose sd is below this share of its mean size is constant: float32 keeps 1.2e-7 of a value,
and sums over a layer a few times that. (The live patch's moment matching uses the same rule.)"""


def column_moments(x: Array) -> tuple[Array, Array]:
    """Mean and sd (n − 1) of each column; the sd is exactly 0 where a column is constant up to rounding."""
    mean, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    return mean, np.where(sd <= CONSTANT_RTOL * np.sqrt((x**2).mean(axis=0)), 0.0, sd)


KEPT = 4
"""Arrays whose view from a span is kept: train and validation rows, twice."""


@dataclass(frozen=True)
class Along:
    """Rows z (m, d) seen from a span: everything about them that no shrinkage, rank or penalty changes.

    Attributes:
        coordinates: (z − mean)·v (m, r). mean_coordinates: mean·v (r,).
        sizes: ‖z − mean‖² (m,). along: mean·(z − mean) (m,). mean_size: ‖mean‖².
        total: Σ‖z − z̄‖² about the rows' own mean, 0 where they don't vary.
    """

    rows: Array
    coordinates: Array
    mean_coordinates: Array
    sizes: Array
    along: Array
    mean_size: float
    total: float

    @classmethod
    def of(cls, span: Span, rows: Array) -> Along:
        """From the rows themselves: one product with the span."""
        off, mean = rows - span.mean, span.mean
        sizes, apart = (off**2).sum(axis=1), rows.mean(axis=0) - mean
        total = float(sizes.sum()) - len(rows) * float(apart @ apart)
        constant = total <= CONSTANT_RTOL**2 * float((rows**2).sum())
        return cls(
            rows,
            off @ span.v,
            mean @ span.v,
            sizes,
            off @ mean,
            float(mean @ mean),
            0.0 if constant else total,
        )


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
    _seen: list[Along] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"]) -> Span:
        """Decomposes through the smaller of the n × n and d × d Grams.

        Directions whose squared singular value is below max(n, d)·2.2e-16 of the largest are rounding
        and left out, so centring alone takes one when n ≤ d.
        """
        centred = x - x.mean(axis=0)
        wide = x.shape[0] < x.shape[1]
        values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        values, vectors = values[::-1], vectors[:, ::-1]
        if values.sum() <= CONSTANT_RTOL**2 * float((x**2).sum()):
            keep = 0
        else:
            keep = int((values > max(x.shape) * np.finfo(np.float64).eps * values[0]).sum())
        return cls.completed(x, np.sqrt(values[:keep]), np.ascontiguousarray(vectors[:, :keep]))

    @classmethod
    def completed(cls, x: Float[np.ndarray, "n d"], sigma: Array, vectors: Array) -> Span:
        """The decomposition whose `thin` part is known: the other side's vectors are one product."""
        mean = x.mean(axis=0)
        wide = x.shape[0] < x.shape[1]
        other = ((x - mean).T if wide else x - mean) @ vectors / sigma
        return cls(mean, vectors, sigma, other) if wide else cls(mean, other, sigma, vectors)

    @property
    def thin(self) -> tuple[Array, Array]:
        """sigma and the singular vectors of the smaller side, (min(n, d), r): enough to complete it."""
        return self.sigma, self.u if len(self.u) < len(self.v) else self.v

    @property
    def rank(self) -> int:
        return self.sigma.size

    @property
    def variances(self) -> Array:
        """Non-zero eigenvalues of the covariance (divided by n − 1), descending."""
        return self.sigma**2 / (self.u.shape[0] - 1)

    def reordered(self, order: Int[np.ndarray, " n"]) -> Span:
        """The decomposition of the same rows in another order."""
        return Span(self.mean, self.u[order], self.sigma, self.v, self._seen)

    def along(self, rows: Float[np.ndarray, "m d"]) -> Along:
        """Any rows seen from this span; kept for the arrays that were asked for last."""
        for kept in self._seen:
            if kept.rows is rows:
                return kept
        found = Along.of(self, rows)
        self._seen.append(found)
        del self._seen[:-KEPT]
        return found


class Side:
    """One model's activations (n, d), with moments and decompositions computed when first asked for.

    Maps fitted on the same sides share them: another map, penalty, shrinkage or pairing of the same rows
    is not decomposed again.
    """

    def __init__(self, rows: Float[np.ndarray, "n d"]) -> None:
        self._rows = np.asarray(rows, dtype=np.float64)

    @property
    def rows(self) -> Array:
        """(n, d) float64."""
        return self._rows

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self._rows.shape
        return n, d

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean (d,) and sd (d,), the sd exactly 0 where a dimension is constant."""
        return column_moments(self.rows)

    @cached_property
    def standard(self) -> Array:
        """(n, d) rows in units of their sd about their mean; 0 where a dimension is constant."""
        mean, sd = self.moments
        return np.where(sd > 0, self.rows - mean, 0.0) / np.where(sd > 0, sd, 1.0)

    @cached_property
    def span(self) -> Span:
        """Decomposition of the centred rows."""
        return Span.of(self.rows)

    @cached_property
    def standard_span(self) -> Span:
        """Decomposition of the standardised dimensions that vary."""
        return Span.of(self._varying())

    def _varying(self) -> Array:
        return self.standard[:, self.moments[1] > 0]

    def reordered(self, order: Int[np.ndarray, " n"]) -> Side:
        """The same rows in another order; what this side has computed is reordered, not repeated."""
        return _Reordered(self, np.asarray(order))

    def decompositions(self) -> dict[str, Array]:
        """Both decompositions as named arrays to keep; see `restored`."""
        found = {}
        for name, span in (("span", self.span), ("standard_span", self.standard_span)):
            found[f"{name}.sigma"], found[f"{name}.vectors"] = span.thin
        return found

    @classmethod
    def restored(cls, rows: Float[np.ndarray, "n d"], kept: Mapping[str, NDArray[Any]]) -> Side:
        """The side of these rows with the decompositions that were kept for them.

        Raises:
            AnalysisError: they belong to rows of another shape.
        """
        side = cls(rows)
        for name, x in (("span", side.rows), ("standard_span", side._varying())):
            sigma, vectors = kept[f"{name}.sigma"], kept[f"{name}.vectors"]
            if vectors.shape != (min(x.shape), sigma.size):
                raise AnalysisError(
                    "A kept decomposition belongs to other activations.",
                    expected=f"{min(x.shape)} rows",
                    given=f"shape {vectors.shape}",
                    next_step="Delete what was kept; it is computed again.",
                )
            side.__dict__[name] = Span.completed(x, sigma, vectors)
        return side


class _Reordered(Side):
    """A side whose rows are another side's in another order."""

    def __init__(self, origin: Side, order: Int[np.ndarray, " n"]) -> None:
        self._origin, self._order, self._rows = origin, order, origin.rows

    @property
    def rows(self) -> Array:
        return self._origin.rows[self._order]

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        return self._origin.moments

    @cached_property
    def standard(self) -> Array:
        return self._origin.standard[self._order]

    @cached_property
    def span(self) -> Span:
        return self._origin.span.reordered(self._order)

    @cached_property
    def standard_span(self) -> Span:
        return self._origin.standard_span.reordered(self._order)


@dataclass(frozen=True)
class Paired:
    """Source and target activations of the same prompts.

    Attributes:
        x, y: the two sides, n rows each.
        groups: (n,) label of each prompt's group (its pair_id); None makes every prompt its own.
        roles: (n,) label of a prompt inside its group (its language), kept when groups are exchanged.
    """

    x: Side
    y: Side
    groups: NDArray[Any] | None = None
    roles: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "n dx"],
        y: Float[np.ndarray, "n dy"],
        groups: NDArray[Any] | None = None,
        roles: NDArray[Any] | None = None,
    ) -> Paired:
        """From plain arrays."""
        return cls(Side(x), Side(y), groups, roles)

    def __len__(self) -> int:
        return self.x.shape[0]

    @cached_property
    def compared(self) -> Int[np.ndarray, " m"]:
        """Rows that are compared all with all: a random sample of whole groups where they are many."""
        groups = np.arange(len(self)) if self.groups is None else unit_index(len(self), self.groups)
        return sample_rows(groups, self.roles)

    @cached_property
    def grams(self) -> tuple[Array, Array]:
        """(m, m) inner products of both sides' compared rows about their means."""
        one, two = (side.rows[self.compared] for side in (self.x, self.y))
        centred = one - one.mean(axis=0), two - two.mean(axis=0)
        return centred[0] @ centred[0].T, centred[1] @ centred[1].T

    def shuffled(self, draws: int, seed: int) -> Iterator[Paired]:
        """The same rows paired wrongly, `draws` times: whole groups of y are exchanged among groups
        with the same roles, and inside a group every role keeps its place; nothing where no two are alike."""
        rng, unit = np.random.default_rng(seed), unit_index(len(self), self.groups)
        order = ordered_units(unit, self.roles)
        wrong = unit_permutations(order, unit, draws, rng, self.roles)
        if all((moved == np.arange(len(self))).all() for moved in wrong):
            return
        for moved in wrong:
            yield Paired(self.x, self.y.reordered(moved), self.groups, self.roles)
