"""Lengths of what each block adds to the residual stream, inside and outside a subspace Z."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtr

from engine.errors import AnalysisError
from engine.geometry.z import check_basis
from engine.stats.scales import Scales, spread
from engine.stats.uncertainty import Band, Groups, band, random_subspace_moments, resample_weights

Array = NDArray[np.float64]


def update_label(block: int) -> str:
    """Axis label of a block's update: what it adds on the way from the block before it."""
    return f"{'−1' if block == 0 else block - 1}→{block}"


def updates(states: Iterable[Float[np.ndarray, "n d"]]) -> Iterator[Float[np.ndarray, "n d"]]:
    """What each block adds: differences of successive residual states (L + 1 states, L updates)."""
    before: NDArray[np.floating] | None = None
    for state in states:
        if before is not None:
            yield state - before
        before = state


@dataclass(frozen=True)
class UpdateNorms:
    """Lengths of updates inside and outside Z, for several k at once.

    Attributes:
        z, rest: (block, prompt, k) ‖P_Z Δ‖ and ‖P_Z⊥ Δ‖. total: (block, prompt) ‖Δ‖.
        concentration: (block,) tr S² of the row-normalised updates: 1 when all prompts move the
            same way, towards 1/d when they have nothing in common; NaN when not asked for.
        scales: (3, block, k) mean, variance and shape of the energy in subspaces that keep Z's share of every
            coordinate (`engine.stats.scales`); None when not asked for.
        ks: the k values. d: model width.
        rounding: (block,) share of each update's length that is rounding of what it was computed from; None
            where that is not known.
        blocks: which block each entry is of; None: 0, 1, 2, … as they came.
    """

    z: Array
    rest: Array
    total: Array
    concentration: Array
    ks: tuple[int, ...]
    d: int
    rounding: Array | None = None
    blocks: tuple[int, ...] | None = None
    scales: Array | None = None

    @property
    def which(self) -> tuple[int, ...]:
        """`blocks`, 0, 1, 2, … where they are not given."""
        return self.blocks or tuple(range(len(self.total)))

    @property
    def shares(self) -> Array:
        """`rounding`, 0 where it is not known."""
        return np.zeros(len(self.total)) if self.rounding is None else self.rounding


Bases = Float[np.ndarray, "d k"] | Mapping[int, NDArray[np.floating]]


def update_norms(
    deltas: Iterable[Float[np.ndarray, "n d"]],
    bases: Bases,
    ks: Sequence[int] | None = None,
    *,
    concentration: bool = True,
) -> UpdateNorms:
    """Measure every block's update against Z for all k at once.

    Args:
        deltas: updates (n, d), one block after another (see `updates`).
        bases: a basis (d, k_max) whose first k columns are the basis for k (nested: "kernels",
            random, PCA), or a mapping k → basis (d, k) where they are built per k ("blocks").
        ks: which k; default 1..k_max, or the mapping's keys.
        concentration: also compute what the nulls against random subspaces need.

    ‖P_Z⊥ Δ‖² is the difference ‖Δ‖² − ‖P_Z Δ‖²: in float32 a part outside Z below about 3e-4 of the
    whole length is rounding (pass float64 updates to see it).

    Raises:
        AnalysisError: a basis that is not orthonormal or not of the updates' width, k out of range.
    """
    nested = isinstance(bases, np.ndarray)
    available = range(1, bases.shape[1] + 1) if isinstance(bases, np.ndarray) else sorted(bases)
    wanted = tuple(available if ks is None else ks)
    if not wanted or not set(wanted) <= set(available):
        raise AnalysisError("Some k have no basis.", expected=f"k among {span(available)}", given=f"{wanted}")
    joined, edges, shares = _side_by_side(bases, wanted)
    z2, total2, shared, kept = [], [], [], []
    for delta in deltas:
        if delta.shape[-1] != joined.shape[0]:
            raise AnalysisError(
                "The basis belongs to another model width.",
                expected=f"d = {delta.shape[-1]}",
                given=f"d = {joined.shape[0]}",
            )
        squares = (delta @ joined.astype(delta.dtype, copy=False)).astype(np.float64) ** 2
        if nested:
            z2.append(np.cumsum(squares, axis=1)[:, np.array(wanted) - 1])
        else:
            z2.append(np.add.reduceat(squares, edges[:-1], axis=1))
        total2.append(
            np.einsum("nd,nd->n", delta, delta, dtype=np.float64, optimize=False)
            if delta.dtype == np.float64
            else np.vecdot(delta, delta).astype(np.float64)
        )
        shared.append(_concentration(delta, total2[-1]) if concentration else np.nan)
        if concentration:
            kept.append(_scale_moments(delta, total2[-1], shares))
    if not z2:
        raise AnalysisError("There are no updates.", expected="at least two residual states", given="none")
    inside, whole = np.array(z2), np.array(total2)
    rest = np.sqrt(np.maximum(whole[:, :, None] - inside, 0.0))
    scales = np.array(kept).transpose(1, 0, 2) if kept else None
    lengths = np.sqrt(inside), rest, np.sqrt(whole)
    return UpdateNorms(*lengths, np.array(shared), wanted, joined.shape[0], scales=scales)


@dataclass(frozen=True)
class MeanNorms:
    """Mean lengths of updates over prompts, block by block, in the unit of the activations.

    Attributes:
        inside, outside: mean ‖P_Z Δ‖ and mean ‖P_Z⊥ Δ‖; R (ratio of means) is one over the other.
        total: mean ‖Δ‖.
    """

    inside: Band
    outside: Band
    total: Band


def mean_norms(
    norms: UpdateNorms,
    k: int,
    *,
    groups: Groups = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> MeanNorms:
    """Mean lengths with percentile bootstrap bands over prompts, or groups of them.

    Raises:
        AnalysisError: a k that was not measured.
    """
    if k not in norms.ks:
        raise AnalysisError("This k was not measured.", expected=f"one of {span(norms.ks)}", given=f"k = {k}")
    at = norms.ks.index(k)
    weights = resample_weights(norms.total.shape[1], n_boot, seed, groups)
    weights = weights / weights.sum(axis=1, keepdims=True)
    method = f"percentile bootstrap over {'prompts' if groups is None else 'groups'}"
    inside, outside, total = (
        band(lengths.mean(axis=1), weights @ lengths.T, level, method)
        for lengths in (norms.z[:, :, at], norms.rest[:, :, at], norms.total)
    )
    return MeanNorms(inside, outside, total)


def span(values: Iterable[int]) -> str:
    listed = list(values)
    return f"{listed[0]}..{listed[-1]}" if len(listed) > 8 else str(listed)


def parts_apart(
    one: Float[np.ndarray, "n d"], two: Float[np.ndarray, "n d"], basis: Float[np.ndarray, "d k"]
) -> float:
    """p of two kinds of rows differing as much in their energy in a random k-subspace; NaN without any row.

    With S of the row-normalised rows of either kind, the difference of energies is tr(Bᵀ(S₁ − S₂)B), of mean
    0 and variance 2k(d−k)/(d(d−1)(d+2)) · tr (S₁ − S₂)² under a uniformly random subspace, of mean
    Σᵢ (S₁ − S₂)ᵢᵢ pᵢ and variance 2 Σᵢ≠ⱼ (S₁ − S₂)ᵢⱼ² aᵢ aⱼ under one that keeps the basis' share pᵢ of every
    coordinate (`engine.stats.scales`); two-sided, normal, the larger of both.
    """
    rows = []
    for x in (one, two):
        size = np.linalg.norm(x, axis=1, keepdims=True)
        if not size.any():
            return float("nan")
        rows.append(np.asarray(x, dtype=np.float64)[size[:, 0] > 0] / size[size[:, 0] > 0])
    a, b = rows
    d, k = basis.shape

    def shared(x: Array, y: Array) -> float:
        return float(((x @ y.T) ** 2).mean())

    _, var = random_subspace_moments(d, k, 0.0, shared(a, a) + shared(b, b) - 2 * shared(a, b))
    found = float(((a @ basis) ** 2).sum(axis=1).mean() - ((b @ basis) ** 2).sum(axis=1).mean())
    p = float(2 * ndtr(-abs(found) / np.sqrt(var))) if var > 0 else 1.0
    return max(p, _apart_of_scales(a, b, basis, found))


def _apart_of_scales(a: Array, b: Array, basis: Float[np.ndarray, "d k"], found: float) -> float:
    """The same p against subspaces that keep the basis' share of every coordinate."""
    shares = (np.asarray(basis, dtype=np.float64) ** 2).sum(axis=1)
    mean = float(((a * a).mean(axis=0) - (b * b).mean(axis=0)) @ shares)
    one, two = (_some(rows).astype(np.float32) for rows in (a, b))
    squares = (one.T @ one / len(one) - two.T @ two / len(two)) ** 2
    np.fill_diagonal(squares, 0.0)
    weights = spread(shares)
    var = float(2 * weights @ (squares @ weights))
    return float(2 * ndtr(-abs(found - mean) / np.sqrt(var))) if var > 0 else 1.0


def _side_by_side(bases: Bases, wanted: tuple[int, ...]) -> tuple[Array, NDArray[np.int64], Array]:
    """All bases in one matrix, for one product, where each begins, and each k's shares of coordinates (d, k).

    Nested bases share their columns, others are put side by side.
    """
    nested = isinstance(bases, np.ndarray)
    parts = [bases[:, : max(wanted)]] if isinstance(bases, np.ndarray) else [bases[k] for k in wanted]
    for part in parts:
        check_basis(np.asarray(part))
    squares = [np.asarray(part, dtype=np.float64) ** 2 for part in parts]
    shares = (
        np.cumsum(squares[0], axis=1)[:, np.array(wanted) - 1]
        if nested
        else np.stack([part.sum(axis=1) for part in squares], axis=1)
    )
    edges = np.cumsum([0, *(part.shape[1] for part in parts)])
    return np.concatenate(parts, axis=1), edges, shares


MOST_ROWS = 256
"""Prompts whose products the variance of `_scale_moments` is from: it grows by about 1/256 of its ceiling."""


def _scale_moments(delta: NDArray[np.floating], squared: Array, shares: Array) -> Array:
    """Mean, variance and shape (3, k) of the mean energy fraction under the null that keeps the scales."""
    keep = np.flatnonzero(squared > 0)
    if not keep.size:
        return np.full((3, shares.shape[1]), np.nan)
    unit = delta[keep].astype(np.float32) / np.sqrt(squared[keep, None]).astype(np.float32)
    null = Scales.of(_some(unit).T, np.float32).null(shares)
    mean = np.vecdot(unit.T, unit.T).astype(np.float64) / len(unit) @ shares
    return np.stack([mean, null.variance, null.shape])


def _some(rows: NDArray[Any]) -> NDArray[Any]:
    """At most `MOST_ROWS` of the rows, drawn at random: languages and templates often take turns."""
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), MOST_ROWS, replace=False)]


def _concentration(delta: NDArray[np.floating], squared: Array) -> float:
    """tr S² for S = mean of x xᵀ/‖x‖², from the smaller of the two Gram matrices."""
    keep = squared > 0
    if not keep.any():
        return float("nan")
    x = delta[keep] / np.sqrt(squared[keep, None]).astype(delta.dtype)
    inner = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return float(np.vecdot(inner, inner).sum(dtype=np.float64)) / keep.sum() ** 2
