"""Weights in a store: what analyses need of every model, its difference from the first model, and contrasts.

A contrast, ΔW of one model − ΔW of another, is kept as a model's difference is, under its own name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from app.build.pieces import piece_steps, write_pieces
from app.build.progress import Progress
from app.live.deltas import arrays_of, read_delta, undefined_tensors
from app.live.weight_tables import NORMS, delta_table, heads_table
from engine.errors import StudyError
from engine.models.loading import LoadedModel
from engine.models.taps import ModelTaps
from engine.models.tensor_parts import norm_of
from engine.models.tokenizer import vocabulary_of
from engine.study.contrasts import ContrastSpec
from engine.study.study import Study
from engine.weights.deltas import IN_BLOCK, WeightDelta, tensor_difference, weight_deltas
from engine.weights.edge import edge
from engine.weights.heads import head_shares
from engine.weights.kept import KeptWeights, put_aside
from engine.weights.names import Names, told_of_rows, unmatched
from store.files import TEMPORARY, storage_errors
from store.reader import Store
from store.writer import StoreWriter

__all__ = [
    "aside",
    "check_comparable",
    "has_deltas",
    "rows_told",
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
    "edge": pl.Float64,
    "error": pl.Float64,
    "rounding": pl.Float64,
    "noise": pl.Float64,
    "rows": pl.Int64,
    "tuned": pl.Float64,
    "factors_stored": pl.Boolean,
    "stored": pl.String,
    "problem": pl.String,
}
"""`stored`: what is kept of a difference: "factors", "dense" or "nothing". `problem`: why there is none.
`edge`: largest singular value of a random difference with the same row and column norms, 99 % quantile.
`rounding`, `noise`, `rows`, `tuned`: see `engine.weights.deltas.WeightDelta`; null where they don't apply."""

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


def write_weights(
    writer: StoreWriter, lm: LoadedModel, first: ModelTaps, weights: KeptWeights | None, say: Progress
) -> None:
    """Writes what is missing of a model's pieces and its differences from the first model.

    Args:
        first: parts of the first model, with or without weights.
        weights: of the first model; None for that model itself, which has a table of norms instead.
    """
    with say.stage(f"{lm.name}: weights", piece_steps(lm), "part") as stage:
        write_pieces(writer, lm, stage)
    if lm.name == next(iter(writer.plan.models)):
        writer.write_table(NORMS, _norms(lm))
    elif weights is not None and not has_deltas(writer, lm.name):
        with say.stage(f"{lm.name}: weight differences", len(weights), "tensor") as stage:
            _write_deltas(writer, lm, first, weights, stage)


@contextmanager
def aside(writer: StoreWriter, lm: LoadedModel) -> Iterator[KeptWeights]:
    """A model's weights in a file of the store's folder (at a URL: of this machine's folder for temporary
    files), where the model itself may go.

    The file is removed behind the block; what a killed run left of it, when the store is next written to.

    Raises:
        StoreError: the disk is full.
    """
    folder = tempfile.gettempdir() if "://" in str(writer.root) else writer.root
    path = Path(folder) / f"{TEMPORARY}{os.getpid()}-weights"
    with storage_errors(path):
        weights = put_aside(lm.model, path, vocabulary_of(lm.tokenizer))
    del lm  # or this frame would hold it
    try:
        yield weights
    finally:
        path.unlink(missing_ok=True)


def _norms(lm: LoadedModel) -> pl.DataFrame:
    rows = [
        {
            "name": name,
            "layer": _layer(name),
            "shape": list(p.shape),
            "norm": norm_of(p.detach()),
        }
        for name, p in lm.model.named_parameters()
    ]
    return pl.DataFrame(rows, schema=NORMS_SCHEMA)


def _layer(name: str) -> int | None:
    found = IN_BLOCK.search(name)
    return None if found is None else int(found[1])


def check_comparable(study: Study, names: Mapping[str, Names]) -> None:
    """StudyError for a contrast of a model that has other tensors than the first one."""
    first = next(iter(study.models))
    for name, spec in study.contrasts.items():
        for side, model in (("plus", spec.plus), ("minus", spec.minus)):
            found = unmatched(names[first], names[model])
            if found:
                some = [f"{tensor} ({problem})" for tensor, problem in list(found.items())[:3]]
                raise StudyError(
                    f"The contrast {name!r} can't be made: {model!r} has other tensors than {first!r}.",
                    expected=f"a model that was made from {first!r}",
                    given=", ".join(some) + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
                    next_step=f"correct contrasts.{name}.{side}, or leave the contrast out.",
                )


def rows_told(names: Mapping[str, Names]) -> dict[str, str]:
    """Of every model made from the first one with another vocabulary: what of its embedding is compared."""
    first = next(iter(names))
    told = {name: told_of_rows(names[first], own) for name, own in names.items()}
    return {name: f"with {first}, {text}" for name, text in told.items() if text is not None}


def write_contrasts(
    writer: StoreWriter, contrasts: Mapping[str, ContrastSpec], first: ModelTaps, say: Progress
) -> None:
    """Writes the contrasts that are missing, from the differences that the store holds.

    Args:
        first: parts of the study's first model, with or without weights.
    """
    for name, spec in contrasts.items():
        if has_deltas(writer, name):
            continue
        store = Store(writer.root)
        sides = (spec.plus, spec.minus)
        lost = {tensor: f"{side}: {why}" for side in sides for tensor, why in undefined_tensors(store, side)}
        tensors = {tensor for side in sides for tensor in store.table(delta_table(side))["name"]}
        with say.stage(f"{name}: contrast", len(tensors), "tensor") as stage:
            found = () if lost else _contrast(store, spec, stage)
            _write_tables(writer, name, f"{spec.plus} − {spec.minus}", found, lost, first)


def _contrast(store: Store, spec: ContrastSpec, advance: Callable[[], object]) -> Iterator[WeightDelta]:
    """plus − minus, one tensor in memory at a time."""
    plus, minus = (
        {row["name"]: row for row in store.table(delta_table(model)).iter_rows(named=True)}
        for model in (spec.plus, spec.minus)
    )
    for name in dict.fromkeys([*plus, *minus]):
        one = read_delta(store, spec.plus, plus[name]) if name in plus else None
        two = read_delta(store, spec.minus, minus[name]) if name in minus else None
        found = tensor_difference(one, two)
        if found is not None:
            yield found
        advance()


def _write_deltas(
    writer: StoreWriter,
    lm: LoadedModel,
    first: ModelTaps,
    weights: KeptWeights,
    advance: Callable[[], object],
) -> None:
    """Values are kept where both models have the same tensors in all blocks; else norms alone."""
    vocabulary = vocabulary_of(lm.tokenizer)
    problems = unmatched(weights.names, Names(lm.model, vocabulary))
    related = not any(IN_BLOCK.search(name) for name in problems)
    found = weight_deltas(
        weights, lm.model, keep=related, factors=lm.factors, vocabulary=vocabulary, advance=advance
    )
    _write_tables(writer, lm.name, f"{lm.name} − {next(iter(writer.plan.models))}", found, problems, first)


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
    row |= {"shape": list(delta.shape), "edge": edge(delta)}
    return row | {"factors_stored": kept == "factors", "stored": kept}


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


def has_deltas(writer: StoreWriter, model: str) -> bool:
    """Whether the tables of weight differences are there with all the arrays that they name."""
    if not writer.has_table(delta_table(model)) or not writer.has_table(heads_table(model)):
        return False
    rows = Store(writer.root).table(delta_table(model)).to_dicts()
    return all(writer.has_array(name) for row in rows for name in arrays_of(row, model))
