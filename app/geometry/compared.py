"""Problems in two languages against Z, as tables; arguments as in `app.geometry.tables`."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from app.geometry.tables import Measured, measured
from engine.stats.uncertainty import Interval
from store.reader import Store

SCHEMA = {
    "layer": pl.Int64,
    "part": pl.String,
    "k": pl.Int64,
    "value": pl.Float64,
    "random": pl.Float64,
    "p_random": pl.Float64,
    "below": pl.Boolean,
}


def separation(
    store: Store, model: str, site: str, layer: int, pooling: str, split: str, category: str, joined: str
) -> pl.DataFrame:
    """Ratios of distances in Z, outside it and in the whole space over k: x, series, value, low, high,
    p_random, p_pairing, p_scales."""
    found = measured(store, model, site, layer, pooling, split, category, joined).separation
    parts = [
        pl.DataFrame(
            {"x": found.ks, "series": name, "value": value.estimate, "low": value.low, "high": value.high}
        )
        for name, value in (("Z", found.inside), ("outside Z", found.outside))
    ]
    whole = pl.DataFrame({"x": found.ks, "series": "whole space"}).with_columns(**_literal(found.full))
    tests = {name: getattr(found, name) for name in ("p_random", "p_pairing", "p_scales")}
    beside = pl.DataFrame({"x": found.ks} | tests).with_columns(pl.col("p_scales").fill_nan(None))
    return pl.concat([*parts, whole]).join(beside, on="x")


def _literal(value: Interval) -> dict[str, pl.Expr]:
    return {"value": pl.lit(value.estimate), "low": pl.lit(value.low), "high": pl.lit(value.high)}


def energy(
    store: Store, model: str, site: str, layer: int, pooling: str, split: str, category: str, joined: str
) -> pl.DataFrame:
    """Share of the language shift in Z over chance, over k: x, series, value, low, high, p_random,
    p_scales."""
    found = measured(store, model, site, layer, pooling, split, category, joined).energy
    ends = {"value": found.ratio.estimate, "low": found.ratio.low, "high": found.ratio.high}
    tests = {"p_random": found.p, "p_scales": found.p_scales}
    return pl.DataFrame({"x": found.ks, "series": "Z"} | ends | tests)


def heads(
    store: Store,
    model: str,
    site: str,
    layer: int,
    pooling: str,
    split: str,
    category: str,
    joined: str,
    k: int,
) -> pl.DataFrame:
    """Ratio of all heads together and of every head's own k directions: name, value, low, high, null_low,
    null_high, p_random."""
    found = measured(store, model, site, layer, pooling, split, category, joined)
    at = found.separation.ks.index(k)
    multi, values = found.separation.inside.at(at), found.heads[:, at]
    low, high = np.quantile(found.separation.random[:, at], [0.05, 0.95])
    return pl.DataFrame(
        {
            "name": ["all heads", *(f"head {i}" for i in range(len(values)))],
            "value": [multi.estimate, *values.tolist()],
            "low": [multi.low] + [None] * len(values),
            "high": [multi.high] + [None] * len(values),
            "null_low": float(low),
            "null_high": float(high),
            "p_random": [float(found.separation.p_random[at]), *found.p_heads[:, at].tolist()],
        },
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )


def every(store: Store, model: str, **where: Any) -> dict[int, Measured]:
    """Every captured block, measured."""
    return {layer: measured(store, model, layer=layer, **where) for layer in store.layers(model)}


def every_separation(
    store: Store, model: str, site: str, pooling: str, split: str, category: str, joined: str, k: int
) -> pl.DataFrame:
    """Ratios of every block at one k: layer, series, value, low, high, p_random."""
    where = {"site": site, "pooling": pooling, "split": split, "category": category, "joined": joined}
    found = []
    for layer, one in every(store, model, **where).items():
        own = one.separation
        at = own.ks.index(k)
        parts = {"Z": own.inside.at(at), "outside Z": own.outside.at(at), "whole space": own.full}
        for name, part in parts.items():
            found.append((layer, name, part.estimate, part.low, part.high, float(own.p_random[at])))
    return pl.DataFrame(found, schema=["layer", "series", "value", "low", "high", "p_random"], orient="row")


def every_energy(
    store: Store, model: str, site: str, pooling: str, split: str, category: str, joined: str, k: int
) -> pl.DataFrame:
    """Language energy of every block at one k: layer, series, value, low, high, p_random, p_scales."""
    where = {"site": site, "pooling": pooling, "split": split, "category": category, "joined": joined}
    found = []
    for layer, one in every(store, model, **where).items():
        own = one.energy
        at = own.ks.index(k)
        ratio = own.ratio.at(at)
        tests = float(own.p[at]), float(own.p_scales[at])
        found.append((layer, "Z", ratio.estimate, ratio.low, ratio.high, *tests))
    names = ["layer", "series", "value", "low", "high", "p_random", "p_scales"]
    return pl.DataFrame(found, schema=names, orient="row")


def configurations(
    store: Store, model: str, site: str, pooling: str, split: str, category: str, joined: str
) -> pl.DataFrame:
    """One row per block, part ("all heads", "head 3") and k.

    value: ratio of distances; random: the median of random subspaces of the same k; p_random against these,
    one-sided; below: whether the ratio is below their median.
    """
    where = {"site": site, "pooling": pooling, "split": split, "category": category, "joined": joined}
    found = []
    for layer, one in every(store, model, **where).items():
        whole = one.separation
        middle = np.median(whole.random, axis=0)
        parts = [("all heads", whole.inside.estimate, whole.p_random)]
        parts += [(f"head {i}", one.heads[i], one.p_heads[i]) for i in range(len(one.heads))]
        for part, ratio, p in parts:
            for at, k in enumerate(whole.ks):
                value, mid = float(ratio[at]), float(middle[at])
                found.append((layer, part, k, value, mid, float(p[at]), value < mid))
    return pl.DataFrame(found, schema=SCHEMA, orient="row")
