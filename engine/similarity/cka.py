"""Representation similarity: centred kernel alignment between two models, layer by layer.

The public face of the similarity analysis. Grams come first (`gram`), everything else works on them:
point values (`linear_cka`, `cka_from_grams`, `cka_curve`, `cross_layer_cka`), intervals
(`bootstrap_cka`, `bootstrap_curves`, `jackknife_cka`), the permuted-pairing null
(`permutation_null`) and all of it for one component as a table (`similarity_table`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from engine.similarity.grams import (
    Cka,
    Grams,
    centre,
    cka_curve,
    cka_from_grams,
    cross_layer_cka,
    gram,
    hsic,
    linear_cka,
    sub_gram,
)
from engine.similarity.intervals import (
    CkaBand,
    bootstrap_cka,
    bootstrap_curves,
    cka_difference,
    jackknife_cka,
)
from engine.similarity.null import CkaNull, permutation_null

__all__ = [
    "Cka",
    "CkaBand",
    "CkaNull",
    "Grams",
    "SimilarityTable",
    "bootstrap_cka",
    "bootstrap_curves",
    "centre",
    "cka_curve",
    "cka_difference",
    "cka_from_grams",
    "cross_layer_cka",
    "gram",
    "hsic",
    "jackknife_cka",
    "linear_cka",
    "permutation_null",
    "similarity_table",
    "sub_gram",
]


@dataclass(frozen=True)
class SimilarityTable:
    """CKA of every layer with intervals and null, one array entry per layer.

    Attributes:
        layer: layer (or residual state) index.
        biased, biased_low, biased_high, biased_se: CKA and its bootstrap interval.
        debiased, debiased_low, debiased_high, debiased_se: the same, debiased.
        null_mean, null_low, null_high: debiased CKA under permuted pairing, pointwise.
        null_band: threshold that the whole curve stays under with the stated probability.
        p: permutation p-value of each layer.
        reason: why a value is NaN, else "".
        n_units, n_resamples, n_permutations, level, unit: constants, repeated per layer.
    """

    layer: NDArray[np.intp]
    biased: NDArray[np.float64]
    biased_low: NDArray[np.float64]
    biased_high: NDArray[np.float64]
    biased_se: NDArray[np.float64]
    debiased: NDArray[np.float64]
    debiased_low: NDArray[np.float64]
    debiased_high: NDArray[np.float64]
    debiased_se: NDArray[np.float64]
    null_mean: NDArray[np.float64]
    null_low: NDArray[np.float64]
    null_high: NDArray[np.float64]
    null_band: NDArray[np.float64]
    p: NDArray[np.float64]
    reason: NDArray[np.str_]
    n_units: NDArray[np.intp]
    n_resamples: NDArray[np.intp]
    n_permutations: NDArray[np.intp]
    level: NDArray[np.float64]
    unit: NDArray[np.str_]

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Column name to array, ready for a data frame."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def similarity_table(
    grams_a: Grams,
    grams_b: Grams,
    *,
    layers: Int[np.ndarray, " l"] | list[int] | None = None,
    index: Int[np.ndarray, " m"] | NDArray[np.bool_] | None = None,
    groups: Int[np.ndarray, " n"] | NDArray[np.str_] | None = None,
    roles: NDArray[np.generic] | None = None,
    n_boot: int = 1000,
    n_draws: int = 199,
    level: float = 0.95,
    seed: int = 0,
) -> SimilarityTable:
    """Everything that a similarity curve shows, for all layers of one component.

    Args:
        grams_a, grams_b: stacks (L, n, n) of the two models.
        layers: layer numbers to report; default 0..L−1.
        index: prompts to use (one language, one split); groups and roles are subset alike.
        groups, roles: see `permutation_null`; the resampling unit and the order inside it.
        n_boot, n_draws, level, seed: resamples, wrong pairings, coverage, seed.
    """
    a: Grams = [np.asarray(k) for k in grams_a]
    b: Grams = [np.asarray(k) for k in grams_b]
    if index is not None:
        rows = np.flatnonzero(index) if np.asarray(index).dtype == np.bool_ else np.asarray(index)
        a, b = [sub_gram(k, rows) for k in a], [sub_gram(k, rows) for k in b]
        groups = None if groups is None else np.asarray(groups)[rows]
        roles = None if roles is None else np.asarray(roles)[rows]
    biased, debiased = bootstrap_curves(a, b, groups=groups, n_boot=n_boot, level=level, seed=seed)
    null = permutation_null(a, b, groups=groups, roles=roles, n_draws=n_draws, level=level, seed=seed)
    size = len(a)
    reasons = [r or s or "" for r, s in zip(biased.reasons, debiased.reasons, strict=True)]

    def repeat(value: float) -> NDArray[np.float64]:
        return np.full(size, value)

    return SimilarityTable(
        np.arange(size) if layers is None else np.asarray(layers),
        biased.estimate,
        biased.low,
        biased.high,
        biased.se,
        debiased.estimate,
        debiased.low,
        debiased.high,
        debiased.se,
        null.mean,
        null.low,
        null.high,
        repeat(null.band),
        null.p,
        np.array(reasons),
        np.full(size, debiased.n_units),
        np.full(size, debiased.n_resamples),
        np.full(size, null.draws),
        repeat(level),
        np.full(size, debiased.unit),
    )
