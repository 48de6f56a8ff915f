"""Scores, paths and spectra of one transport map, as tables.

Every table is a function of the store, the models `source` and `target`, a captured site, block and position,
and the map: the fields of `engine.transport.named.MapSpec` by name. Maps are fitted on the prompts of split
"train" and judged on those of "validation".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from app.transport import tables as tq
from engine.transport import DEFAULT_ALPHAS
from engine.transport.named import USES, MapSpec
from store.reader import Store

SCORES = {"name": pl.String} | dict.fromkeys(("value", "low", "high", "null_low", "null_high"), pl.Float64)


def asked(place: tq.Place, spec: MapSpec) -> dict[str, Any]:
    """What a table of this map at this place is asked by."""
    return place.__dict__ | {"spec": {name: getattr(spec, name) for name in ("method", *USES[spec.method])}}


def _at(source: str, target: str, site: str, layer: int, position: str, spec: Mapping[str, Any]) -> Any:
    return tq.Place(source, target, site, layer, position), MapSpec.model_validate(spec)


def scores(
    store: Store,
    source: str,
    target: str,
    site: str,
    layer: int,
    position: str,
    spec: Mapping[str, Any],
) -> pl.DataFrame:
    """One row per score: name, value, low, high, null_low, null_high, short (the value as it is printed)."""
    found = tq.scores(store, *_at(source, target, site, layer, position, spec))
    cka = (None, None, found.cka_null_low, found.cka_null_high)
    ends = (found.r2_low, found.r2_high, found.r2_shuffled, found.r2_shuffled_max)
    nothing = (None,) * 4
    rows = [
        ("R², train", found.r2_train, *nothing),
        ("R², validation", found.r2_validation, *ends),  # the mean of refits on wrong pairs starts its null
        ("CKA of the models, debiased", found.cka_raw_debiased, *nothing),
        ("CKA after mapping, debiased", found.cka_mapped_debiased, *cka),
        ("CKA after mapping, biased", found.cka_mapped, *nothing),
        ("cosine of deviations", found.cosine_deviation, *nothing),
        ("cosine", found.cosine, *nothing),
    ]
    table = pl.DataFrame(rows, schema=SCORES, orient="row").fill_nan(None)
    return table.with_columns(pl.col("value").map_elements(number, pl.String).alias("short"))


def number(value: float | None) -> str:
    """A score as it is printed."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1e}"


def path(
    store: Store,
    source: str,
    target: str,
    site: str,
    layer: int,
    position: str,
    spec: Mapping[str, Any],
) -> pl.DataFrame:
    """R² over λ or the rank k: x, series ("train", "validation"), value; null_low and null_high, the range of
    refits on wrong pairs, for maps whose path has a closed form."""
    place, wanted = _at(source, target, site, layer, position, spec)
    road = tq.paths(store, place, wanted)
    grid = tuple(grid_of(store, place, wanted))
    lines: dict[str, Any]
    if road is None:
        lines = tq.path_by_prediction(store, place, wanted, grid)
    else:
        lines = {"train": road.train.r2(grid), "validation": road.validation.r2(grid)}
    parts = [pl.DataFrame({"x": grid, "series": name, "value": list(line)}) for name, line in lines.items()]
    table = pl.concat(parts).fill_nan(None)
    if road is None or not road.shuffled:
        return table
    wrong = np.array([one.r2(grid) for one in road.shuffled])
    null = pl.DataFrame({"x": grid, "null_low": wrong.min(0), "null_high": wrong.max(0)})
    return table.join(null, on="x", how="left")


def grid_of(store: Store, place: tq.Place, spec: MapSpec) -> list[float]:
    """λ, or ranks, of a map's path: the one in use is among them."""
    if "penalty" in USES[spec.method]:
        return sorted({*DEFAULT_ALPHAS, *spec.penalties})
    full = len(singular_values(store, place, spec))
    closed = tq.paths(store, place, spec) is not None
    some = range(1, full + 1) if closed and full <= 64 else ranks(full)
    return [float(k) for k in sorted({*some, full, min(spec.rank or full, full)})] if full else []


def ranks(most: int) -> list[int]:
    """Ranks up to `most`, ever further apart."""
    doubling = [k * 2**n for n in range(12) for k in (8, 12)]
    return [k for k in sorted({*range(1, 9), *doubling}) if k <= most]


def single(store: Store, place: tq.Place, spec: MapSpec) -> Any:
    """The fitted map at full rank: that for all clusters, the ridge inside a logit subspace."""
    made: Any = tq.fitted(store, place, spec.model_copy(update={"rank": 0}))
    made = made.global_ if spec.clusters > 1 else made
    return made.ridge_ if spec.method == "LogitSubspaceRidge" else made


def singular_values(store: Store, place: tq.Place, spec: MapSpec) -> list[float]:
    """Singular values that a ridge or Procrustes map is made of, the largest first."""
    made = single(store, place, spec)
    values = made.sigma_ if "penalty" in USES[spec.method] else made.singular_values_
    return [float(value) for value in values]


def spectrum(
    store: Store,
    source: str,
    target: str,
    site: str,
    layer: int,
    position: str,
    spec: Mapping[str, Any],
) -> pl.DataFrame:
    """Singular values that a map is made of: x (1, 2, …), series, value."""
    values = singular_values(store, *_at(source, target, site, layer, position, spec))
    columns = {"x": [float(i + 1) for i in range(len(values))], "series": "singular value", "value": values}
    return pl.DataFrame(columns, schema={"x": pl.Float64, "series": pl.String, "value": pl.Float64})
