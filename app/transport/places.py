"""One map at every site and block: computed once behind a progress bar, then kept in the store."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from app.frame.call import Progress, kept, quiet
from app.transport import scored
from app.transport import tables as tq
from engine.errors import PatchbayError, StoreError
from engine.transport.named import MapSpec
from store.maps import MapLog
from store.reader import Store

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


def asked(place: tq.Place, spec: MapSpec) -> dict[str, Any]:
    """What the table of this map is asked by: as one at a place, without site and block."""
    values = scored.asked(place, spec)
    return {name: values[name] for name in ("source", "target", "position", "spec")}


def every_place(
    store: Store, source: str, target: str, position: str, spec: Mapping[str, Any]
) -> pl.DataFrame:
    """Scores of a map, the fields of `MapSpec` by name, fitted anew at every site and block that both models
    have; read where it was computed before. Columns as in `SCHEMA`."""
    place, wanted = tq.Place(source, target, "", 0, position), MapSpec.model_validate(spec)
    found = known(store, place, wanted)
    return compute(store, place, wanted) if found is None else found


def _name(store: Store, place: tq.Place, spec: MapSpec) -> str:
    which = (place.source, place.target, place.position, tq.SHUFFLES, tq.PAIRINGS, tq.SEED)
    text = repr(("table-1", store.fingerprint, *which, spec.model_dump_json()))
    return f"table-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


@kept()
def _tables(store: Store) -> dict[str, pl.DataFrame]:
    """What was computed or read, by name."""
    return {}


def known(store: Store, place: tq.Place, spec: MapSpec) -> pl.DataFrame | None:
    """The table when it was computed before, by this process or another."""
    name = _name(store, place, spec)
    found = _tables(store).get(name)
    if found is None:
        with contextlib.suppress(StoreError, KeyError, TypeError, ValueError, PolarsError):
            rows = MapLog(str(store.path), kept=True).open(name).description["rows"]
            found = _tables(store)[name] = pl.DataFrame(rows, schema=SCHEMA)
    return found


def compute(store: Store, place: tq.Place, spec: MapSpec, progress: Progress = quiet) -> pl.DataFrame:
    """Scores of the map, fitted anew at every site and block; kept for the next time."""
    every = tq.places(store, place)
    advance = progress("Fitting the map at every site and block…")
    rows = []
    for done, there in enumerate(every):
        advance(done, len(every))
        rows.append(_row(store, there, spec))
    advance(len(every), len(every))
    name = _name(store, place, spec)
    with contextlib.suppress(StoreError):
        log = MapLog(str(store.path), kept=True)
        log.save(name, {"kept": "table", "rows": rows}, {}, {"map": spec.model_dump()}, overwrite=True)
    table = pl.DataFrame(rows, schema=SCHEMA)
    _tables(store)[name] = table
    return table


def _row(store: Store, place: tq.Place, spec: MapSpec) -> dict[str, Any]:
    """One line; where there is no score, `words` says why."""
    where = {"site": place.site, "layer": place.layer}
    why = tq.unusable(store, place, spec)
    if why:
        return {**where, "words": why}
    try:
        both = tq.pair(store, place, keep=False)
        if not (both.train.x.span.rank and both.train.y.span.rank):
            return {**where, "words": CONSTANT}
        made = tq.build(store, place, spec)
        made.fit_sides(both.train.x, both.train.y, both.train.groups)
        found = tq.evaluate(made, both).to_json()
    except PatchbayError as error:
        return {**where, "words": error.what}
    numbers = {name: _finite(found[name]) for name in COLUMNS}
    counts = {name: found[name] for name in ("n_train", "n_validation", "words")}
    return {**where, **numbers, "fallback_rate": getattr(made, "fallback_rate_", None), **counts}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
