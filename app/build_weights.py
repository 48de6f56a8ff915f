"""Weights in a store: what analyses need of every model, its difference from the first model, and contrasts.

A contrast, ΔW of one model − ΔW of another, is kept as a model's difference is, under its own name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from app.weight_tables import NORMS, delta_table, heads_table
from engine.contrasts_spec import ContrastSpec
from engine.delta_heads import head_shares
from engine.deltas import IN_BLOCK, WeightDelta, tensor_difference, unmatched, weight_deltas
from engine.errors import StoreError, StudyError
from engine.model import LoadedModel
from engine.pieces import model_pieces, piece_names
from engine.study import Study
from engine.taps import ModelTaps
from store.bfloat16 import widen
from store.reader import Store
from store.writer import StoreWriter

__all__ = [
    "check_comparable",
    "delta_table",
    "heads_table",
    "read_deltas",
    "steerable",
    "write_contrasts",
    "write_weights",
]

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


def check_comparable(study: Study, shapes: Mapping[str, ModelTaps]) -> None:
    """StudyError for a contrast of a model that has other tensors than the first one.

    Args:
        shapes: the models' parts, without weights.
    """
    first = next(iter(study.models))
    for name, spec in study.contrasts.items():
        for side, model in (("plus", spec.plus), ("minus", spec.minus)):
            found = unmatched(shapes[first].model, shapes[model].model)
            if found:
                some = [f"{tensor} ({problem})" for tensor, problem in list(found.items())[:3]]
                raise StudyError(
                    f"The contrast {name!r} can't be made: {model!r} has other tensors than {first!r}.",
                    expected=f"a model that was made from {first!r}",
                    given=", ".join(some) + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
                    next_step=f"correct contrasts.{name}.{side}, or leave the contrast out.",
                )


def write_contrasts(writer: StoreWriter, contrasts: Mapping[str, ContrastSpec], first: ModelTaps) -> None:
    """Writes the contrasts that are missing, from the differences that the store holds.

    Args:
        first: parts of the study's first model, with or without weights.
    """
    for name, spec in contrasts.items():
        if _has_deltas(writer, name):
            continue
        store = Store(writer.root)
        sides = (spec.plus, spec.minus)
        lost = {tensor: f"{side}: {why}" for side in sides for tensor, why in _lost(store, side)}
        found = () if lost else _contrast(store, spec)
        _write_tables(writer, name, f"{spec.plus} − {spec.minus}", found, lost, first)


def _contrast(store: Store, spec: ContrastSpec) -> Iterator[WeightDelta]:
    """plus − minus, one tensor in memory at a time."""
    plus, minus = (
        {row["name"]: row for row in store.table(delta_table(model)).iter_rows(named=True)}
        for model in (spec.plus, spec.minus)
    )
    for name in dict.fromkeys([*plus, *minus]):
        one = _read(store, spec.plus, plus[name]) if name in plus else None
        two = _read(store, spec.minus, minus[name]) if name in minus else None
        found = tensor_difference(one, two)
        if found is not None:
            yield found


def _write_deltas(writer: StoreWriter, lm: LoadedModel, first: LoadedModel) -> None:
    """Values are kept where both models have the same tensors in all blocks; else norms alone."""
    problems = unmatched(first.model, lm.model)
    related = not any(IN_BLOCK.search(name) for name in problems)
    found = weight_deltas(first.model, lm.model, keep=related)
    _write_tables(writer, lm.name, f"{lm.name} − {first.name}", found, problems, first.taps)


def _write_tables(
    writer: StoreWriter,
    name: str,
    what: str,
    deltas: Iterable[WeightDelta],
    problems: Mapping[str, str],
    first: ModelTaps,
) -> None:
    """Writes the values of a difference as they come, and then its tables, which make it whole.

    Args:
        name: whose difference. what: the difference in words. problems: tensor -> why it has none.
    """
    rows: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    for delta in deltas:
        kept = _write_values(writer, name, what, delta)
        rows.append(_row(delta, kept))
        if kept != "nothing":
            heads += [asdict(share) for share in head_shares(first, delta)]
    for tensor, problem in problems.items():
        rows.append({"name": tensor, "layer": _layer(tensor), "factors_stored": False, "stored": "nothing"})
        rows[-1]["problem"] = problem
    writer.write_table(heads_table(name), pl.DataFrame(heads, schema=HEADS_SCHEMA))
    writer.write_table(delta_table(name), pl.DataFrame(rows, schema=DELTA_SCHEMA))


def _row(delta: WeightDelta, kept: str) -> dict[str, Any]:
    row: dict[str, Any] = {key: getattr(delta, key) for key in DELTA_SCHEMA if hasattr(delta, key)}
    return row | {"shape": list(delta.shape), "factors_stored": kept == "factors", "stored": kept}


def _write_values(writer: StoreWriter, name: str, what: str, delta: WeightDelta) -> str:
    """Writes a difference's values and singular values; "factors", "dense" or "nothing"."""
    place = f"weights/{name}/delta/{delta.name}"
    about = f"{delta.name}, {what}"
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


def _arrays(row: Mapping[str, Any], model: str) -> list[str]:
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
    bad = [f"{tensor} ({why})" for tensor, why in _lost(store, name)]
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
            yield _read(store, name, row)


def _lost(store: Store, name: str) -> list[tuple[str, str]]:
    """Tensors of a stored difference that have no values, each with the reason."""
    lost = store.table(delta_table(name)).filter(pl.col("stored") == "nothing")
    first = lost.sort(pl.col("problem").is_null(), maintain_order=True)
    return [(row, why or "not kept") for row, why in first.select("name", "problem").iter_rows()]


def _read(store: Store, name: str, row: Mapping[str, Any]) -> WeightDelta:
    place = f"weights/{name}/delta/{row['name']}"
    stored = {side.removeprefix(f"{place}/"): store.array(side, stored=True) for side in _arrays(row, name)}
    half = "dense" in stored and stored["dense"].dtype == np.uint16
    values: dict[str, Any] = {
        side: widen(array) if array.dtype == np.uint16 else array for side, array in stored.items()
    }
    facts = {key: row[key] for key in ("name", "norm", "relative", "rank", "error")}
    return WeightDelta(shape=tuple(row["shape"]), half=half, **facts, **values)
