"""The null of a CKA curve: the same two sides with the prompts paired wrongly.

Permuting one side's prompts keeps both self terms, so only the numerator is evaluated again. A prompt takes
the place of another of its own language only: languages that lie apart are no shared geometry. The
permutations are the cyclic shifts of one random arrangement of the units. They form a group, so
the rank of the observed value among them is an exact p-value (Hemerik & Goeman 2018), and the
numerators of all shifts are one correlation, evaluated by Fourier transforms for the price of a
few permutations. The same shift is used for all layers: the largest value over layers then gives
a band that the whole curve stays under with the stated probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import fft

from engine.errors import AnalysisError
from engine.similarity.grams import Grams, as_centred, as_layers, check_pair
from engine.similarity.rotated import possible, rotations
from engine.stats.resampling import ordered_units, unit_index, unit_kinds, unit_permutations, unit_tables

FEW = 256
"""Prompts below which permutations are drawn one by one."""
Array = NDArray[np.float64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class CkaNull:
    """CKA under permuted pairing, for one pair of Grams (shape ()) or a stack (shape (L,)).

    Attributes:
        observed: CKA with the right pairing. mean: mean over wrong pairings.
        low, high: pointwise quantiles of the wrong pairings at the stated level.
        band: one threshold for the whole curve; wrong pairings exceed it anywhere with
            probability 1 − level.
        p: one-sided p-value of each layer. p_curve: the same for the largest value of the curve.
        debiased, level: as asked for. draws: number of wrong pairings.
        exact: True when the pairings form a group (cyclic shifts).
    """

    observed: Array
    mean: Array
    low: Array
    high: Array
    band: float
    p: Array
    p_curve: float
    debiased: bool
    level: float
    draws: int
    exact: bool


def _arrangement(
    n: int, groups: NDArray[np.generic] | None, roles: NDArray[np.generic] | None, rng: np.random.Generator
) -> NDArray[np.intp] | None:
    """Prompts as a (rows, members) table in random order, such that any row may take another one's place.

    A row is a unit; where units are of several kinds (prompts of two languages without pairs), it is one unit
    of each kind, put together at random. None where kinds have different numbers of units.
    """
    unit = unit_index(n, groups)
    order, sizes = ordered_units(unit, roles), np.bincount(unit)
    kinds = unit_kinds(order, unit, roles)
    counts = np.bincount(kinds)
    if (counts != counts[0]).any():
        return None
    parts = []
    for kind in range(counts.size):
        members = order[np.repeat(kinds, sizes) == kind].reshape(counts[0], -1)
        parts.append(members[rng.permutation(counts[0])])
    return np.hstack(parts)


def _spectra(k: NDArray[np.floating], table: NDArray[np.intp]) -> tuple[NDArray[np.complex64], Array]:
    """Fourier transform along the units of every lag of K, and of the diagonal's row sums."""
    g, m = table.shape
    flat = table.ravel()
    ordered = k[flat[:, None], flat].astype(np.float32, copy=False).reshape(g, m, g, m)
    doubled = np.concatenate([ordered, ordered[:, :, : g // 2 + 1]], axis=2)
    s0, s1, s2, s3 = doubled.strides
    lags = np.lib.stride_tricks.as_strided(
        doubled, (g // 2 + 1, m, m, g), (s2, s1, s3, s0 + s2), writeable=False
    )
    return fft.rfft(np.ascontiguousarray(lags), axis=-1), np.diagonal(k)[table].astype(np.float64)


def _shifted(
    a: NDArray[np.floating], b: NDArray[np.floating], table: NDArray[np.intp]
) -> tuple[Array, Array]:
    """⟨K, L shifted⟩ and Σ_i K_ii L_π(i)π(i) for all g shifts of the units, each (g,)."""
    g = table.shape[0]
    (fa, da), (fb, db) = _spectra(a, table), _spectra(b, table)
    weight = np.full(g // 2 + 1, 2.0, dtype=np.float32)
    weight[0] = 1.0
    if g % 2 == 0:
        weight[-1] = 1.0
    cross = np.einsum("t,tuvf,tuvf->f", weight, fa.conj(), fb, optimize=False)
    diagonal = (fft.rfft(da, axis=0).conj() * fft.rfft(db, axis=0)).sum(1)
    return fft.irfft(cross.astype(np.complex128), g), fft.irfft(diagonal, g)


def _drawn(
    a: NDArray[np.floating], b: NDArray[np.floating], draws: list[NDArray[np.intp]]
) -> tuple[Array, Array]:
    """The same for freely drawn permutations; the identity comes first."""
    da, db = np.diagonal(a).astype(np.float64), np.diagonal(b).astype(np.float64)
    full = [float(np.vecdot(a, b.take(p, 0).take(p, 1)).sum(dtype=np.float64)) for p in draws]
    return np.array(full), np.array([float(da @ db[p]) for p in draws])


def permutation_null(
    grams_a: Grams | Float[np.ndarray, "n n"],
    grams_b: Grams | Float[np.ndarray, "n n"],
    *,
    debiased: bool = True,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None = None,
    roles: NDArray[np.generic] | None = None,
    n_draws: int = 199,
    level: float = 0.95,
    seed: int = 0,
) -> CkaNull:
    """CKA of each layer against CKA with the prompts of one side paired wrongly.

    Args:
        grams_a, grams_b: Gram matrices (n, n) or stacks (L, n, n).
        debiased: which estimator.
        groups: unit of each prompt (its pair_id); whole units are moved, members stay together.
        roles: label of each prompt (its language): a prompt is only ever matched with one of the same
            label, and units are exchanged where their members have the same labels. Without, the members
            of equally large units are matched in order of appearance.
        n_draws: wrong pairings wanted. With more units of each kind than that, all cyclic shifts are used
            (their number is units − 1); else random permutations, this many, of many prompts rotations within
            each kind of random arrangements (`engine.similarity.rotated`).
        level: level of the quantiles and of the band.

    Returns:
        Observed values, null quantiles and p-values (1 + #{null ≥ observed})/(1 + draws).
    """
    a, single = as_layers(grams_a)
    b, _ = as_layers(grams_b)
    if len(a) != len(b):
        raise AnalysisError(
            "A curve compares layer with layer.",
            expected="as many layers on both sides",
            given=f"{len(a)} and {len(b)}",
        )
    n, rng = a[0].shape[0], np.random.default_rng(seed)
    table = _arrangement(n, groups, roles, rng)
    cyclic = table is not None and table.shape[0] > n_draws
    unit = unit_index(n, groups)
    order = ordered_units(unit, roles)
    tables = [] if cyclic else unit_tables(order, unit, roles)
    turns = rotations(tables, n_draws, rng) if n >= FEW and possible(tables) >= 4 * n_draws else None
    wrong = [] if cyclic or turns else unit_permutations(order, unit, n_draws, rng, roles)
    rows = []
    for p, q in zip(a, b, strict=True):
        check_pair(p, q, debiased)
        pc, qc = as_centred(p), as_centred(q)
        if table is not None and cyclic:
            full, diagonal = _shifted(pc, qc, table)
        elif turns is not None:
            right = _drawn(pc, qc, [np.arange(n)])
            full, diagonal = map(np.concatenate, zip(right, turns.pair(pc, qc), strict=True))
        else:
            full, diagonal = _drawn(pc, qc, [np.arange(n), *wrong])
        rows.append(_normalise(full, diagonal, pc, qc, debiased))
    return _summarise(np.array(rows), single, debiased, level, cyclic)


def _normalise(
    full: Array, diagonal: Array, a: NDArray[np.floating], b: NDArray[np.floating], debiased: bool
) -> Array:
    """Numerators of all pairings to CKA, by the self terms of the right one."""
    n, da, db = a.shape[0], np.diagonal(a).astype(np.float64), np.diagonal(b).astype(np.float64)
    own = [float(np.vecdot(k, k).sum(dtype=np.float64)) for k in (a, b)]
    if debiased:
        full = full - n / (n - 2) * diagonal + da.sum() * db.sum() / ((n - 1) * (n - 2))
        own = [
            s - n / (n - 2) * float(d @ d) + d.sum() ** 2 / ((n - 1) * (n - 2))
            for s, d in zip(own, (da, db), strict=True)
        ]
    if min(own) <= 0 or min(da.sum(), db.sum()) <= 0:
        return np.full(full.shape, np.nan)
    return full / np.sqrt(own[0] * own[1])


def _summarise(values: Array, single: bool, debiased: bool, level: float, exact: bool) -> CkaNull:
    """values: (L, 1 + draws), the right pairing first."""
    observed, null = values[:, 0], values[:, 1:]
    shape: Shape = () if single else observed.shape
    draws = null.shape[1]
    tolerance = 1e-6 * np.abs(observed)[:, None]
    p = (1 + (null >= observed[:, None] - tolerance).sum(1)) / (1 + draws)
    # order statistics of draws + 1 exchangeable values: the right one is outside with probability 1 − level
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(null, ends, axis=1, method="weibull")
    defined = np.isfinite(observed)
    largest = null[defined].max(0) if defined.any() else np.full(draws, np.nan)
    band = float(np.quantile(largest, level, method="weibull")) if defined.any() else float("nan")
    top = observed[defined].max() if defined.any() else np.nan
    p_curve = (
        (1 + int((largest >= top - 1e-6 * abs(top)).sum())) / (1 + draws) if defined.any() else float("nan")
    )
    return CkaNull(
        observed=observed.reshape(shape),
        mean=null.mean(1).reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        band=band,
        p=np.where(defined, p, np.nan).reshape(shape),
        p_curve=p_curve,
        debiased=debiased,
        level=level,
        draws=draws,
        exact=exact,
    )
