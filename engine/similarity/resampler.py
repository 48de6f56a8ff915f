"""Runs layer after layer through the resamples; see `cka_parts` for the formulas."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.similarity.fast import pairs_of, plain, skew_centred
from engine.similarity.forms import (
    Array,
    Pair,
    Side,
    Units,
    combine,
    dense_forms,
    exact_numerators,
    fast_columns,
    fast_numerators,
    prepare,
)
from engine.stats.resampling import Cyclic, Resamples, off_diagonal_forms, off_diagonal_sum, skew, transform

Method = Literal["auto", "exact", "fast"]
Pairs = tuple[Pair, ...]
_Reduced = tuple[Pairs, list[Array], list[Array]]

PAIRS = ((0, 0), (1, 1), (0, 1))
"""The two self terms and the cross term."""

CHECKED = 16
"""Resamples on which the fast form is compared with the exact one."""
CHECK_EVERY = 16
"""The comparison is made at every sixteenth layer: the difference hardly depends on the data."""
TOLERANCE = 0.25
"""Largest accepted root-mean-square difference between the two, in standard errors."""
LAYERS_AT_ONCE = 33
_kept = threading.local()


@dataclass(frozen=True)
class _Layer:
    """What the fast form keeps of one layer: no n × n matrix."""

    index: int
    pairs: Pairs
    columns: NDArray[np.float32]
    blocks: tuple[float, float]
    few: Array | None


@dataclass(frozen=True)
class Outcome:
    """Per layer: point values (L, 2), resampled values (L, 2, B), the fast form's error (L, 2) and
    which of the two sides has variance (L, 2). The second axis is debiased, biased."""

    points: Array
    values: Array
    left_out: Array
    alive: NDArray[np.bool_]


def _ratios(numerators: Array) -> Array:
    """(3, 2, ...) numerators of aa, bb, ab to (2, ...) CKA, NaN where a self term is not positive."""
    own = np.where(numerators[:2] > 0, numerators[:2], np.nan)
    with np.errstate(invalid="ignore"):
        return numerators[2] / (np.sqrt(own[0]) * np.sqrt(own[1]))


def _buffer(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A float32 buffer kept by this thread between calls: fresh pages cost more than the arithmetic."""
    size = math.prod(shape)
    flat = getattr(_kept, name, None)
    if flat is None or flat.size < size:
        flat = np.empty(size, dtype=np.float32)
        setattr(_kept, name, flat)
    return flat[:size].reshape(shape)


class _Resampler:
    """CKA of every layer in every resample; owns the buffers that all layers reuse."""

    def __init__(self, n: int, drawn: Resamples, units: Units, method: Method) -> None:
        self.units, self.drawn, self.method = units, drawn, method
        self.cyclic = None if method == "exact" else drawn.cyclic
        # whole numbers below 2²⁴: exact in float32
        self.total = (drawn.counts @ units.sizes.astype(np.float32)).astype(np.float64)
        self.buffers = _buffer("grams", (3, n, n))
        if self.cyclic is not None:
            q, lags = self.cyclic.gather.shape
            self.powers = drawn.powers
            self.halves = _buffer("halves", (2, q, lags))
            self.skewed = _buffer("skewed", (3, q, lags))
            self.spectra = _buffer("spectra", (LAYERS_AT_ONCE, 3, self.cyclic.forward.shape[0], lags))

    def sides(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[Side, Side]:
        return prepare(a, self.units, self.buffers[0]), prepare(b, self.units, self.buffers[1])

    def exact(self, x: Side, y: Side, counts: NDArray[np.float32]) -> tuple[Array, Array]:
        """Exact CKA of the full sample (2,) and of the resamples (2, B)."""
        pairs, between = [], np.empty((counts.shape[0], 3))
        for j, (left, right) in enumerate(((x, x), (y, y), (x, y))):
            pair, matrix = combine(left, right, self.units, self.buffers[2])
            pairs.append(pair)
            between[:, j] = dense_forms(matrix, counts)
        numerators = exact_numerators(x, y, tuple(pairs), between, counts, self.units)
        return _ratios(np.stack([p.full for p in pairs])), _ratios(numerators)

    def reduce(
        self, index: int, slot: int, a: NDArray[np.floating], b: NDArray[np.floating], cyclic: Cyclic
    ) -> tuple[_Layer | None, tuple[bool, bool]]:
        """Transform one layer's products into a slot, and evaluate a few resamples exactly."""
        made = self._reduce_single if self.units.single else self._reduce_groups
        found, alive = made(slot, a, b, cyclic)
        if found is None:
            return None, alive
        pairs, blocks, diagonals = found
        few = self.drawn.counts[: min(CHECKED, cyclic.draws)]
        exact = self.exact(*self.sides(a, b), few)[1] if index % CHECK_EVERY == 0 else None
        totals = float(blocks[0].sum()), float(blocks[1].sum())
        return _Layer(index, pairs, fast_columns(pairs, blocks, diagonals), totals, exact), alive

    def _reduce_single(
        self, slot: int, a: NDArray[np.floating], b: NDArray[np.floating], cyclic: Cyclic
    ) -> tuple[_Reduced | None, tuple[bool, bool]]:
        s, t = plain(a), plain(b)
        if not (s.alive and t.alive):
            return None, (s.alive, t.alive)
        skew_centred(cyclic, s, self.halves[0], self.buffers[2])
        skew_centred(cyclic, t, self.halves[1], self.buffers[2])
        for j, (left, right) in enumerate(PAIRS):
            np.multiply(self.halves[left], self.halves[right], out=self.skewed[j])
        transform(cyclic, self.skewed, self.spectra[slot])
        aa, bb, ab = (off_diagonal_sum(cyclic, spectrum) for spectrum in self.spectra[slot])
        zero = np.zeros(s.d.size)
        return (pairs_of(s, t, (aa, bb, ab)), [zero, zero], [s.d, t.d]), (True, True)

    def _reduce_groups(
        self, slot: int, a: NDArray[np.floating], b: NDArray[np.floating], cyclic: Cyclic
    ) -> tuple[_Reduced | None, tuple[bool, bool]]:
        sides, pairs = self.sides(a, b), []
        alive = sides[0].alive, sides[1].alive
        if not all(alive):
            return None, alive
        for j, (left, right) in enumerate(PAIRS):
            pair, matrix = combine(sides[left], sides[right], self.units, self.buffers[2])
            pairs.append(pair)
            skew(cyclic, matrix, self.skewed[j])
        transform(cyclic, self.skewed, self.spectra[slot])
        diagonals = [self.units.sum(side.d) for side in sides]
        return (tuple(pairs), [side.block for side in sides], diagonals), alive

    def fast(self, layers: list[_Layer], cyclic: Cyclic) -> list[Array]:
        """Fast CKA (2, B) of several layers at once."""
        spectra = self.spectra[: len(layers)].reshape(3 * len(layers), *self.spectra.shape[2:])
        between = off_diagonal_forms(cyclic, spectra).astype(np.float64)
        terms = (self.powers @ np.concatenate([v.columns for v in layers]).T).astype(np.float64)
        return [
            _ratios(
                fast_numerators(
                    between[:, 3 * i : 3 * i + 3],
                    terms[:, 14 * i : 14 * i + 14],
                    v.pairs,
                    v.blocks,
                    self.total,
                )
            )
            for i, v in enumerate(layers)
        ]


def _left_out(values: Array, exact: Array | None) -> Array:
    """Root-mean-square error of the fast form on the checked resamples, in standard errors: (2,)."""
    if exact is None:
        return np.full(2, np.nan)
    error = np.sqrt(np.nanmean((values[:, : exact.shape[1]] - exact) ** 2, axis=1))
    spread = np.nanstd(values, axis=1)
    return np.where(error < 1e-6, 0.0, error / np.where(spread > 0, spread, np.inf))


def resampled(
    a: list[NDArray[np.floating]],
    b: list[NDArray[np.floating]],
    drawn: Resamples,
    units: Units,
    method: Method,
) -> Outcome:
    """CKA of every layer, as it is and in every resample."""
    out = Outcome(
        np.full((len(a), 2), np.nan),
        np.full((len(a), 2, drawn.counts.shape[0]), np.nan),
        np.zeros((len(a), 2)),
        np.zeros((len(a), 2), dtype=bool),
    )
    run = _Resampler(a[0].shape[0], drawn, units, method)
    for start in range(0, len(a), LAYERS_AT_ONCE):
        _run_batch(run, a, b, range(start, min(start + LAYERS_AT_ONCE, len(a))), out)
    checked = out.left_out[np.isfinite(out.left_out).all(1)]
    out.left_out[np.isnan(out.left_out)] = checked.max() if checked.size else 0.0
    return out


def _run_batch(
    run: _Resampler,
    a: list[NDArray[np.floating]],
    b: list[NDArray[np.floating]],
    layers: range,
    out: Outcome,
) -> None:
    """Fill one batch of layers; where the fast form fails its check, the whole batch is done exactly."""
    kept: list[_Layer] = []
    for layer in layers:
        if run.cyclic is not None:
            made, out.alive[layer] = run.reduce(layer, len(kept), a[layer], b[layer], run.cyclic)
            kept += [] if made is None else [made]
            continue
        x, y = run.sides(a[layer], b[layer])
        out.alive[layer] = x.alive, y.alive
        if x.alive and y.alive:
            out.points[layer], out.values[layer] = run.exact(x, y, run.drawn.counts)
    if run.cyclic is None or not kept:
        return
    for v, values in zip(kept, run.fast(kept, run.cyclic), strict=True):
        out.points[v.index] = _ratios(np.stack([p.full for p in v.pairs]))
        out.values[v.index], out.left_out[v.index] = values, _left_out(values, v.few)
    if run.method == "auto" and (out.left_out[list(layers)] > TOLERANCE).any():
        for v in kept:
            x, y = run.sides(a[v.index], b[v.index])
            _, out.values[v.index] = run.exact(x, y, run.drawn.counts)
            out.left_out[v.index] = 0.0
