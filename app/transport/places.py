"""One map at every site and block: computed once behind a progress bar, then kept in the store."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from typing import Any

import polars as pl
import streamlit as st
from polars.exceptions import PolarsError

from app.frame.opened import Opened
from app.transport import tables as tq
from engine.errors import PatchbayError, StoreError
from engine.transport.named import MapSpec
from store.maps import MapLog

CONSTANT = "One model has the same activation for every train prompt here: there is nothing to map."
COLUMNS = (
    "r2_train",
    "r2_validation",
    "r2_low",
    "r2_high",
    "r2_shuffled",
    "r2_shuffled_max",
    "cka_raw",
    "cka_raw_debiased",
    "cka_mapped",
    "cka_mapped_debiased",
    "cka_null_low",
    "cka_null_high",
    "cosine",
    "cosine_deviation",
    "alpha_vector",
    "alpha_deviation",
)
SCHEMA: dict[str, Any] = {
    "site": pl.String,
    "layer": pl.Int64,
    **dict.fromkeys(COLUMNS, pl.Float64),
    "fallback_rate": pl.Float64,
    "n_train": pl.Int64,
    "n_validation": pl.Int64,
    "words": pl.String,
}
NAMES = {
    "r2_train": "R² train",
    "r2_validation": "R² validation",
    "r2_low": "95 % from",
    "r2_high": "to",
    "r2_shuffled": "R² wrong pairs",
    "r2_shuffled_max": "largest",
    "cka_raw": "CKA raw",
    "cka_raw_debiased": "CKA raw, debiased",
    "cka_mapped": "CKA mapped",
    "cka_mapped_debiased": "CKA mapped, debiased",
    "cka_null_low": "null from",
    "cka_null_high": "null to",
    "cosine": "cosine",
    "cosine_deviation": "cosine of deviations",
    "alpha_vector": "α, vector",
    "alpha_deviation": "α, deviation",
    "fallback_rate": "fallback",
}
CONFIG: dict[str, Any] = {
    name: st.column_config.NumberColumn(text, format="%.3f") for name, text in NAMES.items()
}
"""How the page shows the columns."""

Progress = Callable[[str], Callable[[int, int], None]]


def _name(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    which = (place.source, place.target, place.position, tq.SHUFFLES, tq.PAIRINGS, tq.SEED)
    text = repr(("table-1", opened.store.fingerprint, *which, spec.model_dump_json()))
    return f"table-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


@st.cache_resource(show_spinner=False)
def _tables() -> dict[tuple[tq.Key, str], pl.DataFrame]:
    return {}


def known(opened: Opened, place: tq.Place, spec: MapSpec) -> pl.DataFrame | None:
    """The table when it was computed before, by this process or another."""
    name = _name(opened, place, spec)
    found = _tables().get((opened.key, name))
    if found is None:
        with contextlib.suppress(StoreError, KeyError, TypeError, ValueError, PolarsError):
            rows = MapLog(opened.path, kept=True).open(name).description["rows"]
            found = pl.DataFrame(rows, schema=SCHEMA)
            _tables()[opened.key, name] = found
    return found


def compute(opened: Opened, place: tq.Place, spec: MapSpec, progress: Progress | None = None) -> pl.DataFrame:
    """Scores of the map, fitted anew at every site and block; kept for the next time."""
    every = tq.places(opened, place)
    advance = progress("Fitting the map at every site and block…") if progress else (lambda done, total: None)
    rows = []
    for done, there in enumerate(every):
        advance(done, len(every))
        rows.append(_row(opened, there, spec))
    advance(len(every), len(every))
    name = _name(opened, place, spec)
    with contextlib.suppress(StoreError):
        log = MapLog(opened.path, kept=True)
        log.save(name, {"kept": "table", "rows": rows}, {}, {"map": spec.model_dump()}, overwrite=True)
    table = pl.DataFrame(rows, schema=SCHEMA)
    _tables()[opened.key, name] = table
    return table


def _row(opened: Opened, place: tq.Place, spec: MapSpec) -> dict[str, Any]:
    """One line; where there is no score, `words` says why."""
    where = {"site": place.site, "layer": place.layer}
    why = tq.unusable(opened, place, spec)
    if why:
        return {**where, "words": why}
    try:
        both = tq.pair(opened, place, keep=False)
        if not (both.train.x.span.rank and both.train.y.span.rank):
            return {**where, "words": CONSTANT}
        made = tq.build(opened, place, spec)
        made.fit_sides(both.train.x, both.train.y, both.train.groups)
        found = tq.evaluate(made, both).to_json()
    except PatchbayError as error:
        return {**where, "words": error.what}
    numbers = {name: _finite(found[name]) for name in COLUMNS}
    counts = {name: found[name] for name in ("n_train", "n_validation", "words")}
    return {**where, **numbers, "fallback_rate": getattr(made, "fallback_rate_", None), **counts}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
