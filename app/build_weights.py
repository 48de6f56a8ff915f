"""Weights in a store: what analyses need of every model, and its difference from the first model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from engine.delta_heads import head_shares
from engine.deltas import IN_BLOCK, WeightDelta, unmatched, weight_deltas
from engine.errors import StoreError
from engine.model import LoadedModel
from engine.pieces import model_pieces, piece_names
from store.layout import slug
from store.reader import Store
from store.writer import StoreWriter

__all__ = ["delta_table", "heads_table", "read_deltas", "steerable", "write_weights"]

NORMS = "weight-norms"
"""Table of the first model's tensors: name, layer, shape, norm."""

DELTA_SCHEMA: dict[str, Any] = {
    "name": pl.String,
    "layer": pl.Int64,
    "shape": pl.List(pl.Int64),
    "norm": pl.Float64,
    "relative": pl.Float64,
    "rank": pl.Int64,
    "effective_rank": pl.Float64,
    "error": pl.Float64,
    "factors_stored": pl.Boolean,
    "stored": pl.String,
    "problem": pl.String,
}
"""`stored`: what is kept of a difference: "factors", "dense" or "nothing". `problem`: why there is none."""

HEADS_SCHEMA: dict[str, Any] = {
    "name": pl.String,
    "layer": pl.Int64,
    "part": pl.String,
    "head": pl.Int64,
    "share": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
}
NORMS_SCHEMA: dict[str, Any] = {k: DELTA_SCHEMA[k] for k in ("name", "layer", "shape", "norm")}


def delta_table(model: str) -> str:
    """Name of the table with a model's weight differences."""
    return f"weight-delta-{slug(model)}"


def heads_table(model: str) -> str:
    """Name of the table with the heads' shares of them."""
    return f"weight-delta-heads-{slug(model)}"


def write_weights(writer: StoreWriter, lm: LoadedModel, first: LoadedModel | None) -> None:
    """Writes what is missing of a model's pieces and its differences from the first (None: it is that)."""
    if not all(writer.has_array(f"weights/{lm.name}/{piece}") for piece in piece_names(lm.taps)):
        for piece in model_pieces(lm.taps):
            attrs = {"meaning": piece.meaning}
            name = f"weights/{lm.name}/{piece.name}"
            writer.write_array(name, piece.values, piece.dims, attrs, bfloat16=piece.bfloat16)
    if first is None:
        writer.write_table(NORMS, _norms(lm))
    elif not _has_deltas(writer, lm.name):
        _write_deltas(writer, lm, first)


def _norms(lm: LoadedModel) -> pl.DataFrame:
    rows = [
        {
            "name": name,
            "layer": _layer(name),
            "shape": list(p.shape),
            "norm": float(p.detach().float().norm()),
        }
        for name, p in lm.model.named_parameters()
    ]
    return pl.DataFrame(rows, schema=NORMS_SCHEMA)


def _layer(name: str) -> int | None:
    found = IN_BLOCK.search(name)
    return None if found is None else int(found[1])


def _write_deltas(writer: StoreWriter, lm: LoadedModel, first: LoadedModel) -> None:
    """Values are kept where both models have the same tensors in all blocks; else norms alone."""
    problems = unmatched(first.model, lm.model)
    related = not any(IN_BLOCK.search(name) for name in problems)
    rows: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    for delta in weight_deltas(first.model, lm.model, keep=related):
        kept = _write_values(writer, lm.name, first.name, delta)
        rows.append(_row(delta, kept))
        if kept != "nothing":
            heads += [asdict(share) for share in head_shares(first.taps, delta)]
    for name, problem in problems.items():
        rows.append({"name": name, "layer": _layer(name), "factors_stored": False, "stored": "nothing"})
        rows[-1]["problem"] = problem
    writer.write_table(heads_table(lm.name), pl.DataFrame(heads, schema=HEADS_SCHEMA))
    writer.write_table(delta_table(lm.name), pl.DataFrame(rows, schema=DELTA_SCHEMA))


def _row(delta: WeightDelta, kept: str) -> dict[str, Any]:
    row: dict[str, Any] = {key: getattr(delta, key) for key in DELTA_SCHEMA if hasattr(delta, key)}
    return row | {"shape": list(delta.shape), "factors_stored": kept == "factors", "stored": kept}


def _write_values(writer: StoreWriter, model: str, first: str, delta: WeightDelta) -> str:
    """Writes a difference's values and singular values; "factors", "dense" or "nothing"."""
    place = f"weights/{model}/delta/{delta.name}"
    about = f"{delta.name}, {model} − {first}"
    if delta.spectrum is not None:
        meaning = {"meaning": f"singular values of the difference of {about}"}
        writer.write_array(f"{place}/spectrum", delta.spectrum, ("rank",), meaning)
    if delta.left is not None and delta.right is not None:
        meaning = {"meaning": f"low-rank factor of the difference of {about}"}
        writer.write_array(f"{place}/left", delta.left, ("out", "rank"), meaning)
        writer.write_array(f"{place}/right", delta.right, ("rank", "in"), meaning)
        return "factors"
    if delta.dense is None:
        return "nothing"
    dims = ("out", "in")[: delta.dense.ndim]
    meaning = {"meaning": f"difference of {about}"}
    writer.write_array(f"{place}/dense", delta.dense, dims, meaning, bfloat16=delta.half)
    return "dense"


def _arrays(row: dict[str, Any], model: str) -> list[str]:
    """Arrays that a row of the table promises."""
    sides = {"factors": ["left", "right"], "dense": ["dense"]}.get(row["stored"], [])
    sides += ["spectrum"] if row["effective_rank"] is not None else []
    return [f"weights/{model}/delta/{row['name']}/{side}" for side in sides]


def _has_deltas(writer: StoreWriter, model: str) -> bool:
    """Whether the tables of weight differences are there with all the arrays that they name."""
    if not writer.has_table(delta_table(model)) or not writer.has_table(heads_table(model)):
        return False
    rows = Store(writer.root).table(delta_table(model)).to_dicts()
    return all(writer.has_array(name) for row in rows for name in _arrays(row, model))


def steerable(store: Store, model: str) -> bool:
    """Whether a model differs from the first one, in tensors whose differences are all kept."""
    table = store.table(delta_table(model)) if delta_table(model) in store.table_names() else None
    if table is None or "stored" not in table.columns:
        return False
    return table.height > 0 and table["problem"].is_null().all() and not (table["stored"] == "nothing").any()


def read_deltas(store: Store, model: str) -> Iterator[WeightDelta]:
    """What a model's weights differ by from the first model's, tensor by tensor; nothing for the first model.

    Raises:
        StoreError: the models have no such difference, tensor by tensor, or the store has none.
    """
    first = store.models[0]
    if model == first:
        return
    if (
        delta_table(model) not in store.table_names()
        or "stored" not in store.table(delta_table(model)).columns
    ):
        raise StoreError(
            f"The store holds no weight difference of {model} from {first}.",
            expected="the differences that precompute.py writes",
            given=f"a store of {store.manifest.get('created', 'unknown date')}",
            next_step="run precompute.py on the same study into a new folder.",
        )
    rows = store.table(delta_table(model)).to_dicts()
    bad = [f"{row['name']} ({row['problem']})" for row in rows if row["problem"] is not None]
    bad += [
        f"{row['name']} (not kept)" for row in rows if row["problem"] is None and row["stored"] == "nothing"
    ]
    if bad:
        raise StoreError(
            f"{model} is not {first} with other weights: the difference is not defined for every tensor.",
            expected="the same tensors in both models",
            given=", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else ""),
            next_step="choose a model that was made from the study's first one.",
        )
    for row in rows:
        yield _read(store, model, row)


def _read(store: Store, model: str, row: dict[str, Any]) -> WeightDelta:
    place = f"weights/{model}/delta/{row['name']}"
    found: dict[str, Any] = {
        side: np.asarray(store.array(name), dtype=np.float32)
        for name in _arrays(row, model)
        for side in [name.removeprefix(f"{place}/")]
    }
    facts = {key: row[key] for key in ("name", "norm", "relative", "rank", "error")}
    return WeightDelta(shape=tuple(row["shape"]), **facts, **found)
