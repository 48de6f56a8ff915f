"""What rounding alone does to 1 − CKA of a pair and to R² of a map, cached; titles compare with it."""

from __future__ import annotations

import numpy as np
import polars as pl
import streamlit as st

from app.frame import prompts as queries
from app.frame.opened import Key, Opened
from app.frame.prompts import Filter, chosen_filter
from app.frame.selection import Selection
from app.frame.store_rounding import dtype_of, relative_noise
from app.frame.words import SAME
from engine.stats.rounding_error import cka_bound, cka_error, rounding_sd, row_error

ROWS = 256
"""Prompts that the noise of a block is estimated from."""
MARGIN = 2.0
"""1 − CKA up to this many times its expectation under storage rounding is rounding: it varies around that."""


def with_noise(opened: Opened, selection: Selection, site: str, curve: pl.DataFrame) -> pl.DataFrame:
    """A CKA curve (columns layer, value) with a column `noise`: 1 − CKA up to it is rounding.

    Where everything before a block is identical in both models, nothing but the rounding of the block itself
    can differ: storage's. Behind that, errors of the model's own computation add up: where those were
    measured (`Store.rounding`) they count as well.
    """
    split, spoken, category = chosen_filter(selection)
    parts = []
    for (language,), rows in curve.group_by("series", maintain_order=True):
        which = (split, str(language) if language in opened.facts.languages else spoken, category)
        found = _cka_noise(opened.key, opened, selection, site, which)
        joined = rows.join(found, on="layer", how="left", maintain_order="left").sort("layer")
        same, noise = 0 in joined["layer"].to_list(), []
        for row in joined.to_dicts():
            noise.append(row["storage"] if same else max(row["storage"], row["computed"]))
            same = same and row["value"] is not None and row["value"] >= 1 - SAME
        parts.append(
            joined.drop("storage", "computed").with_columns(noise=pl.Series(noise, dtype=pl.Float64))
        )
    return pl.concat(parts) if parts else curve.with_columns(noise=pl.lit(0.0))


def with_shares(opened: Opened, model: str, position: str, places: pl.DataFrame) -> pl.DataFrame:
    """A table of places (columns site, layer) with a column `noise`: what of a model's variance is
    rounding."""
    shares = [
        _share(opened.key, opened, model, site, int(layer), position)
        for site, layer in places.select("site", "layer").rows()
    ]
    return places.with_columns(noise=pl.Series(shares, dtype=pl.Float64))


@st.cache_data(show_spinner=False, max_entries=1024)
def _share(key: Key, _opened: Opened, model: str, site: str, block: int, position: str) -> float:
    store = _opened.store
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


def _relevant(selection: Selection) -> tuple[str, ...]:
    return selection.a, selection.b, selection.position, selection.estimator


@st.cache_data(show_spinner="Estimating rounding…", max_entries=64, hash_funcs={Selection: _relevant})
def _cka_noise(key: Key, _opened: Opened, selection: Selection, site: str, which: Filter) -> pl.DataFrame:
    """Columns layer, storage and computed: 1 − CKA that either kind of rounding explains; 0 where
    undefined."""
    store, keep = _opened.store, queries.rows(_opened, which)
    rows = _spread(keep)
    blocks = queries.shared_blocks(_opened, selection.a, selection.b)
    found = []
    for block in blocks:
        storage, computed = 0.0, 0.0
        for model in (selection.a, selection.b):
            x = store.activations(model, site, block, selection.position, rows=rows).astype(np.float64)
            sd = rounding_sd(x, dtype_of(store, model))
            storage += MARGIN * cka_error(x, sd, selection.estimator == "debiased")
            computed = max(computed, cka_bound(x, relative_noise(store, model, site, block)))
        found.append((block, *(float(np.nan_to_num(v)) for v in (storage, computed))))
    return pl.DataFrame(
        found, schema={"layer": pl.Int64, "storage": pl.Float64, "computed": pl.Float64}, orient="row"
    )
