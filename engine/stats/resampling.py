"""Bootstrap resamples arranged so that quadratic forms of all of them are cheap and exact.

A bootstrap resample is a vector of counts c: how often each unit (a prompt, or a pair of prompts)
was drawn. Evaluating cᵀMc for B independent resamples costs 2·G²·B operations for each matrix M.
Here the G units are laid out at random on a grid of p rows and q columns, R count grids are drawn,
and each is used at all q cyclic shifts along its rows: B = R·q resamples. Every single one is an
ordinary multinomial resample, because shifting a randomly laid out draw doesn't change its
distribution. But cᵀMc over the shifts of one grid is a correlation along the rows, so one Fourier
transform of M of length q serves all resamples, about twenty times less work at G = 600.

Shifts of one grid are uncorrelated with each other up to −1/G. Their squares aren't quite: the
Monte-Carlo variance of a standard error is 1 + (q−1)/G times that of independent draws (5 % at
q = 30, G = 600), which is the price.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from engine.errors import AnalysisError

FAST_FROM_UNITS = 200
"""Below this many units the plain dense evaluation is used: it is cheap and exact."""

CYCLES = range(26, 46)
"""Lengths q to choose from; q + 2B/q operations per entry of M are least near q = √(2B) ≈ 45, and
the transforms are more efficient in practice a little below."""


@dataclass(frozen=True)
class Cyclic:
    """Fourier-side description of a cyclic set of resamples.

    Attributes:
        forward: (2F, q) real transform, rows (frequency, real/imaginary), F = q//2 + 1.
        backward: (q, 2F) its inverse, for correlations.
        spectrum: (F, 2R, 2·lags) transform of the products of counts at every lag.
        weight: (lags,) how often each lag counts: 2 off the diagonal of the grid's rows, 0 for the
            diagonal of the matrix.
        gather: (q, lags) flat index into a (G, G) matrix.
        left: (q, row pairs, 1) the unit whose row of the matrix it reads.
        empty: flat positions of (q, lags) that belong to no unit (padding of the grid).
    """

    forward: NDArray[np.float32]
    backward: NDArray[np.float32]
    spectrum: NDArray[np.float32]
    weight: NDArray[np.float32]
    gather: NDArray[np.intp]
    left: NDArray[np.intp]
    empty: NDArray[np.intp]

    @property
    def draws(self) -> int:
        """R, the number of independently drawn count grids."""
        return int(self.spectrum.shape[1] // 2)


@dataclass(frozen=True)
class Resamples:
    """Counts of bootstrap resamples over units.

    Attributes:
        counts: (B, G) float32, how often unit g was drawn in resample b. The first `Cyclic.draws`
            rows come from different grids and are independent of each other.
        cyclic: the fast evaluation plan, or None for few units.
    """

    counts: NDArray[np.float32]
    cyclic: Cyclic | None

    @cached_property
    def powers(self) -> NDArray[np.float32]:
        """(B, 3G): counts, their squares and their cubes."""
        square = self.counts * self.counts
        return np.concatenate([self.counts, square, square * self.counts], axis=1)


def unit_index(n: int, groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None) -> NDArray[np.intp]:
    """Index 0..G−1 of the resampling unit of each prompt, in order of first appearance.

    Args:
        n: number of prompts.
        groups: a label for each prompt (its pair_id); None makes every prompt its own unit.
    """
    if groups is None:
        return np.arange(n)
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise AnalysisError(
            "The groups do not match the prompts.", expected=f"{n} labels", given=f"shape {labels.shape}"
        )
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(first.size, dtype=np.intp)
    order[np.argsort(first)] = np.arange(first.size)
    return order[inverse]


def ordered_units(unit: Int[np.ndarray, " n"], roles: NDArray[np.generic] | None = None) -> NDArray[np.intp]:
    """Prompts ordered by unit, inside a unit by role (its language), else by appearance; (n,)."""
    n = len(unit)
    keys = np.arange(n) if roles is None else np.unique(roles, return_inverse=True)[1]
    return np.lexsort((np.arange(n), keys, unit))


def unit_kinds(
    order: Int[np.ndarray, " n"], unit: Int[np.ndarray, " n"], roles: NDArray[np.generic] | None = None
) -> NDArray[np.intp]:
    """Kind 0..K−1 of each unit: units of one kind have as many members, and members of the same roles.

    Args:
        order, unit, roles: as `unit_permutations` takes them.
    """
    sizes = np.bincount(unit)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    labels = np.zeros(len(unit), dtype=np.intp) if roles is None else np.unique(roles, return_inverse=True)[1]
    members = [tuple(labels[order[a : a + size]].tolist()) for a, size in zip(starts, sizes, strict=True)]
    number = {kind: i for i, kind in enumerate(sorted(set(members), key=lambda kind: (len(kind), kind)))}
    return np.array([number[kind] for kind in members], dtype=np.intp)


def unit_tables(
    order: Int[np.ndarray, " n"], unit: Int[np.ndarray, " n"], roles: NDArray[np.generic] | None = None
) -> list[NDArray[np.intp]]:
    """For each kind of units a table (units, members) of prompts; arguments as of `unit_permutations`."""
    sizes = np.bincount(unit)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    kinds = unit_kinds(order, unit, roles)
    tables = []
    for kind in range(kinds.max(initial=-1) + 1):
        same = np.flatnonzero(kinds == kind)
        tables.append(order[starts[same][:, None] + np.arange(sizes[same[0]])])
    return tables


def unit_permutations(
    order: Int[np.ndarray, " n"],
    unit: Int[np.ndarray, " n"],
    count: int,
    rng: np.random.Generator,
    roles: NDArray[np.generic] | None = None,
) -> list[NDArray[np.intp]]:
    """`count` permutations of the prompts that move whole units among units of the same size.

    Args:
        order: prompts as `ordered_units` gives them: members of exchanged units are matched in this order.
        unit: (n,) unit of each prompt, 0..G−1.
        roles: (n,) where given, units are moved only among units whose members have the same roles.
    """
    tables = unit_tables(order, unit, roles)
    out = []
    for _ in range(count):
        moved = np.empty_like(order)
        for table in tables:
            moved[table] = table[rng.permutation(len(table))]
        out.append(moved)
    return out


@lru_cache(maxsize=3)
def resamples(n_units: int, n_boot: int, seed: int, cyclic: bool | None = None) -> Resamples:
    """Draw bootstrap resamples of `n_units` units (cached: the plan takes tens of MB).

    Args:
        n_units: G.
        n_boot: at least this many resamples are made; a cyclic set rounds up to a multiple of q.
        seed: seed of the draw.
        cyclic: force or forbid the cyclic set; None takes it from 200 units on.
    """
    if n_units < 2 or n_boot < 2:
        raise AnalysisError(
            "Nothing to resample.",
            expected="at least 2 units and 2 resamples",
            given=f"{n_units} units, {n_boot} resamples",
        )
    rng = np.random.default_rng(seed)
    if not (n_units >= FAST_FROM_UNITS if cyclic is None else cyclic):
        counts = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_boot)
        return Resamples(counts.astype(np.float32), None)
    q = min(CYCLES, key=lambda c: (-(-n_units // c) * c - n_units, abs(c - 34)))
    p, draws = -(-n_units // q), -(-n_boot // q)
    cells = rng.permutation(p * q).reshape(p, q)
    cells[cells >= n_units] = -1
    drawn = rng.multinomial(p * q, np.full(p * q, 1 / (p * q)), size=draws)
    grids = drawn.reshape(draws, p, q).astype(np.float32)
    return Resamples(_unroll(grids, cells, n_units), _plan(grids, cells, n_units))


def _unroll(grids: NDArray[np.float32], cells: NDArray[np.intp], n_units: int) -> NDArray[np.float32]:
    """All shifts of all grids as count vectors, rows ordered (shift, draw)."""
    draws, p, q = grids.shape
    used = np.flatnonzero(cells.ravel() >= 0)
    counts = np.empty((q, draws, n_units), dtype=np.float32)
    for shift in range(q):
        flat = np.roll(grids, -shift, axis=2).reshape(draws, p * q)
        counts[shift][:, cells.ravel()[used]] = flat[:, used]
    return counts.reshape(q * draws, n_units)


def _plan(grids: NDArray[np.float32], cells: NDArray[np.intp], n_units: int) -> Cyclic:
    """Transforms for Q(s) = Σ_lags Σ_b M_lag[b]·g_lag[b + s], a lag being (row, row', shift t).

    By symmetry of M only row ≤ row' is kept, with weight 2 off the diagonal of the grid's rows;
    the diagonal of M (same row, t = 0) gets weight 0 and is treated by the caller.
    """
    draws, p, q = grids.shape
    freq, place = q // 2 + 1, np.arange(q)
    angle = 2 * np.pi * np.outer(np.arange(freq), place) / q
    weight = np.full((freq, 1), 2.0 / q)
    weight[0] = 1.0 / q
    if q % 2 == 0:
        weight[-1] = 1.0 / q
    forward = np.stack([np.cos(angle), -np.sin(angle)], 1).reshape(2 * freq, q).astype(np.float32)
    backward = np.stack([weight * np.cos(angle), -weight * np.sin(angle)], 1).reshape(2 * freq, q).T

    row, row2 = np.triu_indices(p)
    shifted = (place[:, None] + place[None, :]) % q
    left = np.broadcast_to(cells[row].T[:, :, None], (q, row.size, q))
    right = cells[row2][:, shifted].transpose(1, 0, 2)
    gather = (left * n_units + right).reshape(q, -1)
    empty = np.flatnonzero(((left < 0) | (right < 0)).ravel())
    gather.ravel()[empty] = 0

    doubled = np.concatenate([grids, grids], axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(doubled, q, axis=2)[:, :, :q]
    lags = row.size * q
    lag_weight = np.repeat(np.where(row == row2, 1.0, 2.0).astype(np.float32)[:, None], q, axis=1)
    lag_weight[row == row2, 0] = 0.0
    spectrum = np.empty((freq, 2 * draws, 2 * lags), dtype=np.float32)
    product = np.empty((q, row.size, q), dtype=np.float32)
    for draw in range(draws):
        own = grids[draw].T[:, row]
        np.multiply(own[:, :, None], windows[draw].transpose(1, 0, 2)[:, row2], out=product)
        product *= lag_weight
        real, imag = (forward @ product.reshape(q, lags)).reshape(freq, 2, lags).transpose(1, 0, 2)
        spectrum[:, draw, :lags], spectrum[:, draw, lags:] = real, imag
        spectrum[:, draws + draw, :lags] = imag
        np.negative(real, out=spectrum[:, draws + draw, lags:])
    own = np.ascontiguousarray(np.maximum(left[:, :, :1], 0))
    inverse = np.ascontiguousarray(backward, dtype=np.float32)
    return Cyclic(forward, inverse, spectrum, lag_weight.ravel(), gather, own, empty)


def transform(cyclic: Cyclic, skewed: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Transform matrices given in skewed form: (m, q, lags) to (m, 2F, lags), into `out`."""
    np.matmul(cyclic.forward, skewed, out=out)


def skew(cyclic: Cyclic, matrix: Float[np.ndarray, "g g"], out: NDArray[np.float32]) -> None:
    """Read a symmetric (G, G) float32 matrix lag by lag into `out` (q, lags)."""
    np.take(matrix.ravel(), cyclic.gather, out=out, mode="clip")
    if cyclic.empty.size:
        out.ravel()[cyclic.empty] = 0.0


def off_diagonal_sum(cyclic: Cyclic, transformed: NDArray[np.float32]) -> float:
    """Σ_{g≠h} M_gh from one transformed matrix (2F, lags): its zero frequency."""
    return float(transformed[0].astype(np.float64) @ cyclic.weight)


def off_diagonal_forms(cyclic: Cyclic, transformed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Σ_{g≠h} c_g c_h M_gh for all resamples, from transformed matrices (m, 2F, lags).

    Returns:
        (B, m) in the row order of `Resamples.counts`.
    """
    m, double, lags = transformed.shape
    draws, q = cyclic.draws, cyclic.forward.shape[1]
    by_frequency = transformed.reshape(m, double // 2, 2 * lags).transpose(1, 0, 2)
    mixed = np.matmul(by_frequency, cyclic.spectrum.transpose(0, 2, 1)).reshape(double // 2, m, 2, draws)
    columns = mixed.transpose(0, 2, 3, 1).reshape(double, draws * m)
    return (cyclic.backward @ columns).reshape(q * draws, m)
