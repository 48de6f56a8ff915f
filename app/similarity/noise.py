"""What rounding alone does to 1 − CKA of a pair and to R² of a map, cached; titles compare with it."""

from __future__ import annotations

import numpy as np
import polars as pl

from app.frame import prompts as queries
from app.frame.call import kept
from app.frame.prompts import Filter
from app.frame.store_rounding import dtype_of, relative_noise
from app.frame.words import SAME
from engine.stats.rounding_error import cka_bound, cka_error, rounding_sd, row_error
from store.reader import Store

ROWS = 256
"""Prompts that the noise of a block is estimated from."""
MARGIN = 2.0
"""1 − CKA up to this many times its expectation under storage rounding is rounding: it varies around that."""


def with_noise(
    store: Store,
    curve: pl.DataFrame,
    a: str,
    b: str,
    site: str,
    position: str,
    which: Filter,
    estimator: str,
) -> pl.DataFrame:
    """A CKA curve (columns layer, value) by layer with a column `noise`: 1 − CKA up to it is rounding.

    Where everything before a block is identical in both models, nothing but the rounding of the block itself
    can differ: storage's. Behind that, errors of the model's own computation add up: where those were
    measured (`Store.rounding`) they count as well.
    """
    found = _cka_noise(store, a, b, site, position, which, estimator)
    joined = curve.join(found, on="layer", how="left", maintain_order="left").sort("layer")
    same, noise = 0 in joined["layer"].to_list(), []
    for row in joined.to_dicts():
        noise.append(row["storage"] if same else max(row["storage"], row["computed"]))
        same = same and row["value"] is not None and row["value"] >= 1 - SAME
    return joined.drop("storage", "computed").with_columns(noise=pl.Series(noise, dtype=pl.Float64))


def with_shares(store: Store, model: str, position: str, places: pl.DataFrame) -> pl.DataFrame:
    """A table of places (columns site, layer) with a column `noise`: what of a model's variance is
    rounding."""
    shares = [
        _share(store, model, site, int(layer), position)
        for site, layer in places.select("site", "layer").rows()
    ]
    return places.with_columns(noise=pl.Series(shares, dtype=pl.Float64))


@kept(most=1024)
def _share(store: Store, model: str, site: str, block: int, position: str) -> float:
    x = store.activations(model, site, block, position, rows=_spread(np.arange(store.n_prompts)))
    relative = max(
        row_error(x, rounding_sd(x, dtype_of(store, model))), relative_noise(store, model, site, block)
    )
    return float(np.nan_to_num(cka_bound(x, float(np.nan_to_num(relative)))))


def _spread(rows: np.ndarray) -> np.ndarray:
    """At most `ROWS` of some rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, ROWS).astype(int))] if len(rows) > ROWS else rows


def note(curve: pl.DataFrame) -> str:
    """What a caption says of it, with a space before; nothing where it is below all that is shown."""
    most = float(curve["noise"].max() or 0.0)  # type: ignore[arg-type]
    return "" if most < SAME else f" Rounding alone gives a 1 − CKA of up to {most:.0e}.".replace("e-0", "e-")


@kept("Estimating rounding…")
def _cka_noise(
    store: Store, a: str, b: str, site: str, position: str, which: Filter, estimator: str
) -> pl.DataFrame:
    """Columns layer, storage and computed: 1 − CKA that either kind of rounding explains; 0 where
    undefined."""
    rows = _spread(queries.rows(store, which))
    found = []
    for block in queries.shared_blocks(store, a, b):
        storage, computed = 0.0, 0.0
        for model in (a, b):
            x = store.activations(model, site, block, position, rows=rows).astype(np.float64)
            sd = rounding_sd(x, dtype_of(store, model))
            storage += MARGIN * cka_error(x, sd, estimator == "debiased")
            computed = max(computed, cka_bound(x, relative_noise(store, model, site, block)))
        found.append((block, *(float(np.nan_to_num(v)) for v in (storage, computed))))
    return pl.DataFrame(
        found, schema={"layer": pl.Int64, "storage": pl.Float64, "computed": pl.Float64}, orient="row"
    )
