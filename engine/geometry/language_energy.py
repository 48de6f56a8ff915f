"""How much of what tells two languages apart lies in a subspace Z, against random subspaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.geometry.separation import Bases, Problems, inside_squares
from engine.stats.scales import Scales, shares_of
from engine.stats.uncertainty import (
    Band,
    band,
    energy_p_values,
    energy_range,
    random_subspace_moments,
    resample_weights,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LanguageEnergy:
    """Energy of the language shift in Z over chance, for several k.

    Attributes:
        ratio: mean over problems of ‖P_Z(two − one)‖²/‖two − one‖², over k/d; bootstrap over problems.
        low, high: central 95 % of random k-subspaces (Beta with exact moments).
        p: one-sided p of at least this energy in a random k-subspace. p_low: of at most this energy.
        p_scales, p_scales_low: the same against subspaces that keep Z's share of every coordinate.
        more, less: the larger p of both nulls on either side, which words go by.
    """

    ks: tuple[int, ...]
    d: int
    n: int
    ratio: Band
    low: Array
    high: Array
    p: Array
    p_low: Array
    p_scales: Array
    p_scales_low: Array

    @property
    def more(self) -> Array:
        return np.maximum(self.p, self.p_scales)

    @property
    def less(self) -> Array:
        return np.maximum(self.p_low, self.p_scales_low)


def language_energy(
    problems: Problems, bases: Bases, *, n_boot: int = 500, level: float = 0.95, seed: int = 0
) -> LanguageEnergy:
    """Share of the language shift inside Z at every k, over k/d, against random subspaces.

    The null has exact moments (see `uncertainty.energy_fraction`) that depend on how alike the shifts of
    different problems are: when all point one way, a random subspace may hold many times k/d. Beside it
    stands the null that keeps the coordinates' scales (`engine.stats.scales`): a few large coordinates that
    Z reads, or leaves out, raise or lower the share by themselves.

    Raises:
        AnalysisError: no problem differs between the languages.
    """
    total = problems.whole.cross
    keep = total > 1e-24 * max(float(total.max()), 1e-300)
    if not keep.any():
        raise AnalysisError(
            "The languages do not differ here.",
            expected="vectors that differ between the languages",
            given="equal vectors for every problem",
        )
    each = {k: found.cross[keep] / total[keep] for k, found in inside_squares(problems, bases)}
    ks, d = tuple(each), problems.d
    unit = problems.shift[keep] / np.sqrt(total[keep, None])
    gram = unit @ unit.T if unit.shape[0] <= d else unit.T @ unit
    shared = float(np.vecdot(gram, gram).sum()) / keep.sum() ** 2
    chance = np.array(ks) / d
    weights = resample_weights(problems.n, n_boot, seed)[:, keep]
    counts = weights.sum(axis=1, keepdims=True)
    values = np.array([each[k] for k in ks])
    draws = np.divide(weights @ values.T, counts, out=np.full((n_boot, len(ks)), np.nan), where=counts > 0)
    mean, variance = np.array([random_subspace_moments(d, k, 1.0, shared) for k in ks]).T
    fraction = values.mean(axis=1)
    p = energy_p_values(fraction, mean, variance)
    ends = energy_range(mean, variance, level)
    ratio = band(fraction / chance, draws / chance, level, "percentile bootstrap over problems")
    kept = Scales.of(unit.T, np.float32).null(_shares(bases, ks))
    nulls = p, 1.0 - p, kept.p(fraction), kept.p_low(fraction)
    return LanguageEnergy(ks, d, problems.n, ratio, ends[0] / chance, ends[1] / chance, *nulls)


def _shares(bases: Bases, ks: tuple[int, ...]) -> Array:
    """Z's share of every coordinate at every k, (d, s)."""
    if isinstance(bases, Mapping):
        return np.stack([(np.asarray(bases[k], dtype=np.float64) ** 2).sum(axis=1) for k in ks], axis=1)
    return shares_of(np.asarray(bases))
