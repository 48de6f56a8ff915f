"""Similarity of two models of a store, block by block: CKA with its interval, its null, and rounding.

Every table is a function of the store, the models `a` and `b`, a captured site, a position, and `which`
prompts: (split, language, category), each "all" or a value of that column. `estimator` is "debiased" or
"biased".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from app.frame import prompts as queries
from app.frame.call import kept
from app.frame.prompts import LEVEL, PERMUTATIONS, RESAMPLES, SEED, Filter
from app.similarity.noise import with_noise
from engine.errors import AnalysisError
from engine.similarity import cka
from store.reader import Store

DIFFERENCE = "difference"


@kept("Reading Gram matrices…", most=8)
def stack(store: Store, model: str, site: str, position: str, which: Filter) -> np.ndarray:
    """Centred Gram matrices of every captured block over the filtered prompts, (block, m, m) float32."""
    rows = queries.looked_at(store, which)
    if store.has_grams(model, site, position) or store.position_kind(position) == "many":
        whole, known = store.grams(model, site, position), store.gram_prompts()
        if rows.size == whole.shape[-1]:
            return whole
        return cka.sub_gram(whole, rows if known is None else np.searchsorted(known, rows))
    layers = store.layers(model)
    out = np.empty((len(layers), rows.size, rows.size), dtype=np.float32)
    for number, block in enumerate(layers):
        out[number] = cka.gram(store.activations(model, site, block, position, rows=rows), np.float32)
    return out


def _both(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, blocks: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both models' Gram matrices of some blocks, each (m, m)."""
    one, two = (
        [stack(store, model, site, position, which)[store.layers(model).index(block)] for block in blocks]
        for model in (a, b)
    )
    return one, two


@kept("Resampling prompts…")
def cka_curve(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, interval: str
) -> pl.DataFrame:
    """Both estimators with an interval ("bootstrap" or "jackknife"), per block.

    Returns:
        Columns layer, series ("debiased", "biased"), value, low, high, n.
    """
    blocks = queries.shared_blocks(store, a, b)
    one, two = _both(store, a, b, site, position, which, blocks)
    drawn = queries.units(store, queries.looked_at(store, which))
    if interval == "bootstrap":
        bands = cka.bootstrap_curves(one, two, groups=drawn, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    else:
        bands = (
            cka.jackknife_cka(one, two, debiased=False, groups=drawn, level=LEVEL),
            cka.jackknife_cka(one, two, debiased=True, groups=drawn, level=LEVEL),
        )
    parts = [
        pl.DataFrame(
            {"layer": blocks, "value": band.estimate, "low": band.low, "high": band.high}
        ).with_columns(series=pl.lit(name), n=pl.lit(len(one[0])))
        for name, band in (("debiased", bands[1]), ("biased", bands[0]))
    ]
    return pl.concat(parts).select("layer", "series", "value", "low", "high", "n")


@kept("Pairing prompts at random…")
def cka_null(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, estimator: str
) -> pl.DataFrame:
    """An estimator when prompts are paired at random within their kinds: layer, low, high, p, draws, within
    (the kinds in words)."""
    blocks = queries.shared_blocks(store, a, b)
    one, two = _both(store, a, b, site, position, which, blocks)
    rows = queries.looked_at(store, which)
    labels, within = queries.kinds(store, rows)
    null = cka.permutation_null(
        one,
        two,
        debiased=estimator == "debiased",
        groups=queries.groups(store, rows),
        roles=labels,
        n_draws=PERMUTATIONS,
        level=LEVEL,
        seed=SEED,
    )
    found = {"layer": blocks, "low": null.low, "high": null.high, "p": null.p, "draws": null.draws}
    return pl.DataFrame(found | {"within": within})


def cka_with_null(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, estimator: str, interval: str
) -> pl.DataFrame:
    """`cka_curve` beside the null of one estimator: null_low, null_high, p."""
    curve = cka_curve(store, a, b, site, position, which, interval)
    null = cka_null(store, a, b, site, position, which, estimator)
    null = null.select("layer", "p", null_low="low", null_high="high")
    return curve.join(null, on="layer", how="left")


def cka_by_language(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, estimator: str, interval: str
) -> pl.DataFrame:
    """An estimator's curve in each language, whatever language `which` names: columns as in `cka_curve`,
    series = language, and noise."""
    split, _, category = which
    parts = []
    for language in queries.values(store, "language"):
        part = split, language, category
        curve = cka_curve(store, a, b, site, position, part, interval).filter(series=estimator)
        curve = with_noise(store, curve, a, b, site, position, part, estimator)
        parts.append(curve.with_columns(series=pl.lit(language)))
    return pl.concat(parts)


@kept()
def cka_grid(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, estimator: str
) -> pl.DataFrame:
    """Every block of one model against every block of the other: layer (of a), other (of b), value."""
    one, two = (stack(store, model, site, position, which) for model in (a, b))
    values = cka.cross_layer_cka(one, two, estimator == "debiased")
    left, right = store.layers(a), store.layers(b)
    return pl.DataFrame(
        {"layer": np.repeat(left, len(right)), "other": np.tile(right, len(left)), "value": values.ravel()}
    )


def same_prompts(store: Store, other: Store, which: Filter) -> bool:
    """Whether similarity looks at the same prompts, in the same order, in two stores."""
    if store is other:
        return True
    one, two = (
        at.prompts[queries.looked_at(at, which)].select(c for c in ("id", "text") if c in at.prompts.columns)
        for at in (store, other)
    )
    return one.equals(two)


def contrast(
    store: Store,
    other: Store,
    pair: tuple[str, str],
    other_pair: tuple[str, str],
    names: tuple[str, str],
    site: str,
    position: str,
    which: Filter,
    estimator: str,
    interval: str,
) -> pl.DataFrame:
    """1 − CKA of two pairs of models at the blocks that both have, and the first's minus the second's where
    the prompts are the same.

    Args:
        other, other_pair: the store and the models of the second pair.
        names: what the pairs are called.

    Returns:
        Columns layer, series (a name, or "difference"), value, low, high.

    Raises:
        AnalysisError: no block that both pairs have.
    """
    sides = ((store, pair), (other, other_pair))
    curves = []
    for (at, models), name in zip(sides, names, strict=True):
        curve = cka_curve(at, *models, site, position, which, interval).filter(series=estimator)
        distance = {"value": 1 - pl.col("value"), "low": 1 - pl.col("high"), "high": 1 - pl.col("low")}
        curves.append(curve.select("layer", series=pl.lit(name), **distance))
    blocks = sorted(set(curves[0]["layer"]) & set(curves[1]["layer"]))
    if not blocks:
        raise AnalysisError(
            f"There is no contrast of {names[0]} with {names[1]}: no block was captured of both.",
            expected="at least one block in both",
            given=" and ".join(str(curve["layer"].to_list()) for curve in curves),
            next_step="choose another pair.",
        )
    found = [curve.filter(pl.col("layer").is_in(blocks)) for curve in curves]
    if same_prompts(store, other, which):
        found.append(_difference(store, other, pair, other_pair, site, position, which, estimator))
    return pl.concat(found)


@kept("Leaving prompts out…", most=32)
def _difference(
    store: Store,
    other: Store,
    pair: tuple[str, str],
    other_pair: tuple[str, str],
    site: str,
    position: str,
    which: Filter,
    estimator: str,
) -> pl.DataFrame:
    sides = ((store, pair), (other, other_pair))
    blocks = sorted(set.intersection(*(set(queries.shared_blocks(at, *models)) for at, models in sides)))
    found, low, high = cka.cka_difference(
        *(_both(at, *models, site, position, which, blocks) for at, models in sides),
        debiased=estimator == "debiased",
        groups=queries.units(store, queries.looked_at(store, which)),
        level=LEVEL,
    )
    distance = {"value": -found, "low": -high, "high": -low}  # of 1 − CKA
    return pl.DataFrame({"layer": blocks, "series": DIFFERENCE} | distance)
