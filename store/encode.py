"""Arrays cut into the inner chunks of a shard, in the stored dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from engine.errors import StoreError
from store.bfloat16 import bits_of
from store.layout import STATIC_DTYPES, STATIC_FOLDERS, ArraySpec
from store.plan import StorePlan

Array = np.ndarray[Any, Any]
Chunk = Callable[[], Array]
Values = Mapping[Any, Array]


def unit_chunks(
    plan: StorePlan, model: str, unit: int, position: str, leaf: str, spec: ArraySpec, values: Values
) -> list[Chunk | None]:
    """The inner chunks of one unit's shard of "sites" or "head_z", in C order; None where absent.

    Raises:
        StoreError: an array is missing or has another shape than the plan's.
    """
    rows, blocks = plan.rows(model, position, unit), set(plan.blocks(model))
    axis = spec.dims.index("row")
    chunk_rows, width = spec.chunk[axis], math.prod(spec.shape[axis + 1 :])
    per_shard = spec.shard[axis] // chunk_rows
    chunks: list[Chunk | None] = []
    for number, component in enumerate(plan.sites if leaf == "sites" else ("head_z",)):
        for index, layer in enumerate(spec.attrs["layers"]):
            if component != "resid" and layer not in blocks:
                chunks += [None] * per_shard
                continue
            plane = _plane(values, leaf, number, component, index, layer)
            if plane is None or plane.ndim < 2 or (len(plane), math.prod(plane.shape[1:])) != (rows, width):
                raise _misfit(model, unit, position, f"{component} {layer}", (rows, width), plane)
            for start in range(0, per_shard * chunk_rows, chunk_rows):
                piece = plane[start : start + chunk_rows].reshape(-1, width)
                chunks.append(partial(_padded, piece, (chunk_rows, width), spec) if len(piece) else None)
    return chunks


def _plane(values: Values, leaf: str, number: int, component: str, index: int, layer: int) -> Array | None:
    """(rows, ...) values of one component at one layer, in either accepted form."""
    if leaf in values:
        whole = values[leaf]
        try:
            return whole[number, index] if leaf == "sites" else whole[index]
        except IndexError:
            return None
    return values.get((component, layer))


def _padded(piece: Array, shape: tuple[int, int], spec: ArraySpec) -> Array:
    """A whole inner chunk from its rows, in the stored dtype; missing rows are NaN."""
    stored = bits_of(piece) if spec.is_bfloat16 else np.asarray(piece, dtype=spec.dtype)
    if len(stored) < shape[0]:
        full = np.full(shape, spec.fill, dtype=spec.dtype)
        full[: len(stored)] = stored
        return full
    return np.ascontiguousarray(stored)


def check_array(name: str, values: Array, dims: Sequence[str]) -> None:
    """Refuses an array written once that a store can't keep under this name."""
    parts = name.split("/")
    if (
        parts[0] not in STATIC_FOLDERS
        or len(parts) < 2
        or any(not part or part.startswith(".") for part in parts)
        or values.dtype.name not in STATIC_DTYPES
        or values.ndim != len(dims)
        or values.ndim < 1
    ):
        raise StoreError(
            f"The array {name!r} cannot be kept.",
            expected="a name below grams/, weights/, subspaces/ or shared/, a numeric dtype, named axes",
            given=f"{values.dtype} of shape {values.shape}, axes {list(dims)}",
            next_step="Correct the call to write_array.",
        )


def static_chunks(values: Array, spec: ArraySpec) -> list[Callable[[], Array] | None]:
    """Inner chunks of a whole array, in C order, filled up at the ends."""
    return [partial(_static_chunk, values, spec, number) for number in np.ndindex(*spec.grid)]


def _static_chunk(values: Array, spec: ArraySpec, number: tuple[int, ...]) -> Array:
    piece = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(number, spec.chunk, strict=True))]
    if piece.shape == spec.chunk:
        return np.ascontiguousarray(piece)
    full = np.full(spec.chunk, spec.fill, dtype=spec.dtype)
    full[tuple(slice(0, size) for size in piece.shape)] = piece
    return full


def _misfit(
    model: str, unit: int, position: str, what: str, shape: tuple[int, int], given: Array | None
) -> StoreError:
    return StoreError(
        f"Unit {unit} of model {model}, position {position}: {what} does not fit the plan.",
        expected=f"{shape[0]} rows of width {shape[1]}",
        given="nothing" if given is None else f"shape {given.shape}",
        next_step="This is a mistake in the caller; nothing was written.",
    )
