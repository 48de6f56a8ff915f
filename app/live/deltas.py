"""Weight differences that a store holds: tensor by tensor, of a model from the first one, or a contrast."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from app.live.weight_tables import delta_table
from engine.errors import StoreError
from engine.weights.deltas import WeightDelta
from engine.weights.steer import HELD
from store.bfloat16 import widen
from store.reader import Store

__all__ = [
    "StoredDeltas",
    "arrays_of",
    "by_string",
    "read_delta",
    "read_deltas",
    "steerable",
    "undefined_tensors",
]


def arrays_of(row: Mapping[str, Any], model: str) -> list[str]:
    """Arrays that a row of the table promises."""
    sides = {"factors": ["left", "right"], "dense": ["dense"]}.get(row["stored"], [])
    sides += ["spectrum"] if row["effective_rank"] is not None else []
    return [f"weights/{model}/delta/{row['name']}/{side}" for side in sides]


def steerable(store: Store, model: str) -> bool:
    """Whether a model differs from the first one, in tensors whose differences are all kept."""
    table = store.table(delta_table(model)) if delta_table(model) in store.table_names() else None
    if table is None or "stored" not in table.columns:
        return False
    return table.height > 0 and table["problem"].is_null().all() and not (table["stored"] == "nothing").any()


def read_deltas(store: Store, name: str, only: Collection[str] | None = None) -> Iterator[WeightDelta]:
    """A stored weight difference, tensor by tensor: a model's from the first one, or a contrast.

    Args:
        name: of a model or a contrast; the first model has no tensors that differ.
        only: names of tensors, None for all.

    Raises:
        StoreError: the models have no such difference, tensor by tensor, or the store has none.
    """
    first = store.models[0]
    if name == first:
        return
    if delta_table(name) not in store.table_names() or "stored" not in store.table(delta_table(name)).columns:
        raise StoreError(
            f"The store holds no weight difference of {name} from {first}.",
            expected="the differences that precompute.py writes",
            given=f"a store of {store.manifest.get('created', 'unknown date')}",
            next_step="run precompute.py on the same study into a new folder.",
        )
    bad = [f"{tensor} ({why})" for tensor, why in undefined_tensors(store, name)]
    if bad:
        of_model = f"{name} is not {first} with other weights: the difference"
        what = of_model if name in store.models else f"The contrast {name}"
        raise StoreError(
            f"{what} is not defined for every tensor.",
            expected="the same tensors in both models",
            given=", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else ""),
            next_step="choose a model that was made from the study's first one.",
        )
    for row in store.table(delta_table(name)).iter_rows(named=True):
        if only is None or row["name"] in only:
            yield read_delta(store, name, row)


def by_string(store: Store, model: str) -> None:
    """StoreError for a difference that an earlier version took row by row over two numberings of tokens."""
    name, first = delta_table(model), store.models[0]
    if not {name, "shared-vocabulary"} <= set(store.table_names()) or "rows" in store.table(name).columns:
        return
    pair = store.table("shared-vocabulary").filter(a=first, b=model)
    if {"shared", "same_id"} <= set(pair.columns) and (pair["shared"] != pair["same_id"]).any():
        raise StoreError(
            f"The stored difference of {model} from {first} pairs embeddings by number.",
            expected="token strings with the same numbers in both vocabularies, or rows paired by string",
            given=f"{pair['shared'][0]} strings in both, {pair['same_id'][0]} under the same number",
            next_step="run precompute.py on the same study into a new folder.",
        )


class StoredDeltas(Mapping[str, WeightDelta]):
    """A stored weight difference by tensor name, read when it is asked for; what is large is not held.

    Raises:
        StoreError: as `read_deltas` does.
    """

    def __init__(self, store: Store, name: str) -> None:
        list(read_deltas(store, name, only=()))
        self._store, self._name = store, name
        self._rows = {row["name"]: row for row in store.table(delta_table(name)).iter_rows(named=True)}
        self._held: dict[str, WeightDelta] = {}

    def __getitem__(self, tensor: str) -> WeightDelta:
        found = self._held.get(tensor) or read_delta(self._store, self._name, self._rows[tensor])
        if found.dense is None or found.dense.size <= HELD:
            self._held[tensor] = found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def undefined_tensors(store: Store, name: str) -> list[tuple[str, str]]:
    """Tensors of a stored difference that have no values, each with the reason."""
    lost = store.table(delta_table(name)).filter(pl.col("stored") == "nothing")
    first = lost.sort(pl.col("problem").is_null(), maintain_order=True)
    return [(row, why or "not kept") for row, why in first.select("name", "problem").iter_rows()]


def read_delta(store: Store, name: str, row: Mapping[str, Any]) -> WeightDelta:
    place = f"weights/{name}/delta/{row['name']}"
    stored = {side.removeprefix(f"{place}/"): store.array(side, stored=True) for side in arrays_of(row, name)}
    half = "dense" in stored and stored["dense"].dtype == np.uint16
    values: dict[str, Any] = {
        side: widen(array) if array.dtype == np.uint16 else array for side, array in stored.items()
    }
    facts = {key: row[key] for key in ("name", "norm", "relative", "rank", "error")}
    facts |= {
        key: row.get(key) for key in ("rounding", "noise", "rows")
    }  # stores of earlier versions have none
    return WeightDelta(shape=tuple(row["shape"]), half=half, **facts, **values)
