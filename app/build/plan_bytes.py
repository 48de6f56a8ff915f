"""What a study's store will take on the disk, compressed, counted array by array before any weight is loaded.

What compresses is judged by random numbers of the same kind, packed as the store packs them: of a trained
model's activations and weights little but signs and mantissas is left, which don't compress.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from app.build.plan_changes import Change, changes
from engine.models.pieces import GRAM_BITS, Piece, gate_weight, model_pieces, rounded
from engine.models.sites import LayerTaps, ModelTaps
from engine.similarity.sampling import keeps_grams
from engine.subspaces.prompts import PERSONAS
from engine.subspaces.weights import weight_shapes
from store.bfloat16 import bits_of
from store.shards import encode_chunk, index_bytes
from store.shared import ENTRY_BYTES

if TYPE_CHECKING:
    from app.build.prepare import Prepared

__all__ = ["store_bytes"]

METADATA, ENTRY, GROUP = 760, 330, 64
"""Bytes of an array's metadata, of its entry in the ledger, and of a group's metadata."""
SAMPLE = 1 << 16
SAMPLED_ROWS = 1000
TOKEN_BITS = 10
RUN_BYTES = 170_000
"""Of the stored scores, for each weight change and block, at 64 ranks."""


def store_bytes(prepared: Prepared) -> dict[str, int]:
    """Bytes by kind: activations, Grams, weights, differences, subspaces, tables."""
    found = changes(prepared.study, prepared.names)
    return {
        "activations": _activations(prepared),
        "Grams": _grams(prepared),
        "weights": _weights(prepared, found),
        "differences": int(sum(_difference(prepared, name, change) for name, change in found.items())),
        "subspace scores": _subspaces(prepared, found),
        "tables": _tables(prepared, found),
    }


@lru_cache(maxsize=512)
def _packed(numbers: int, kind: str) -> float:
    """Bytes of a chunk of so many numbers: "bfloat16", "float32", or float32 with fewer bits ("10", "14")."""
    values = np.random.default_rng(0).standard_normal(min(max(numbers, 1), SAMPLE), dtype=np.float32)
    if kind == "triangle":
        side = max(1, int(len(values) ** 0.5))
        values = rounded(np.triu(values[: side * side].reshape(side, side)), GRAM_BITS)
    elif kind.isdigit():
        values = rounded(values, int(kind))
    chunk = bits_of(values) if kind == "bfloat16" else values
    return sum(map(len, encode_chunk(np.ascontiguousarray(chunk)))) * numbers / values.size


def _array(numbers: int, kind: str, chunks: int = 1) -> float:
    """An array written once, with its metadata and its entry."""
    own = chunks * _packed(max(1, numbers // chunks), kind) if numbers else 0
    return own + index_bytes(chunks) + METADATA + ENTRY


def _activations(prepared: Prepared) -> int:
    plan = prepared.store_plan()
    kind, total = plan.dtype, 0.0
    for model in plan.models:
        for position, leaf, spec in plan.specs(model):
            total += len(spec.metadata()) + ENTRY
            vectors = prod(spec.shape[: spec.dims.index("row")])
            if leaf == "sites":
                extra = len(plan.states(model)) - len(plan.blocks(model))
                vectors_there = vectors - extra * sum(site != "resid" for site in plan.sites)
            else:
                vectors_there = vectors
            width = prod(spec.shape[spec.dims.index("row") + 1 :])
            per_chunk = spec.chunk[spec.dims.index("row")]
            pieces = -(-int(spec.attrs["rows_per_unit"]) // per_chunk)
            for unit in range(plan.n_units):
                rows = plan.rows(model, position, unit)
                full = min(rows, per_chunk) * width
                total += vectors_there * (rows * width / max(1, full)) * _packed(max(1, full), kind)
                total += index_bytes(vectors * pieces) + 150
        total += 60 * plan.n_units
    return int(total)


def _grams(prepared: Prepared) -> int:
    capture, total = prepared.study.capture, 0.0
    n, plan = len(prepared.table), prepared.store_plan()
    rows = min(n, capture.similarity_prompts)
    for model, shape in prepared.shapes.items():
        for place in plan.positions.values():
            for component in capture.components if place.kind != "many" else ():
                width = shape.z_width if component == "head_z" else shape.d
                if keeps_grams(n, width, capture.similarity_prompts):
                    layers = plan.states(model) if component == "resid" else plan.blocks(model)
                    total += len(layers) * (4 * rows**2 + 20) + METADATA + ENTRY
    return int(total)


def _weights(prepared: Prepared, found: Mapping[str, Change]) -> int:
    """Pieces of every model; of a later one, parts that it has in common with the first are there already."""
    total = 0.0
    for name, shape in prepared.shapes.items():
        half = prepared.study.models[name].dtype == "bfloat16"
        for piece in model_pieces(shape):
            total += _piece(shape, piece, half, found.get(name))
    return int(total)


def _piece(shape: ModelTaps, piece: Piece, half: bool, change: Change | None) -> float:
    count = 1 if piece.whole else piece.shape[0]
    entry = prod(piece.shape) // count
    kind = "bfloat16" if piece.exact and half else "float32"
    kind = "triangle" if piece.name == "gate_gram" else kind
    keyed = 4 * shape.n_kv_heads * shape.head_dim * shape.d >= ENTRY_BYTES
    if piece.keys is not None and keyed and shape.head_dim < shape.d:
        entry = shape.n_heads * shape.head_dim**2
    if 4 * prod(piece.shape) < ENTRY_BYTES * count and piece.keys is None:
        return _array(prod(piece.shape), kind, count)
    own = sum(change is None or change.touches(*_made_of(shape, piece.name, i)) for i in range(count))
    return own * _array(entry, kind) + GROUP + 400 + 46 * count + ENTRY


def _made_of(shape: ModelTaps, piece: str, i: int) -> Iterable[str | None]:
    """Names of the parameters that an entry is made of."""
    names = {id(p): name for name, p in shape.model.named_parameters()}

    def of(*modules: Any) -> list[str | None]:
        return [names.get(id(getattr(module, "weight", None))) for module in modules]

    if piece == "unembedding":
        return of(shape.unembedding)
    layer: LayerTaps = shape.layers[i]
    keys = of(*(getattr(layer.attn, name) for name in layer.family.qkv_names[:2]))
    if piece == "w_k":
        return keys[-1:]
    if piece.startswith("kernel"):
        return keys
    if piece.startswith("folded"):
        return [*keys, *of(layer.input_norm, layer.q_norm, layer.k_norm)]
    if gate_weight(layer) is None:
        return []
    gate = of(getattr(layer.mlp, "gate_proj", None) or layer.mlp.gate_up_proj)
    return gate if shape.n_kv_heads * shape.head_dim >= shape.d else [*gate, *keys]


def _difference(prepared: Prepared, name: str, change: Change) -> float:
    if not change.related:
        return 0.0
    study = prepared.study
    first = next(iter(study.models))
    sides = (name,) if name in study.models else (study.contrasts[name].plus, study.contrasts[name].minus)
    half = all(study.models[side].dtype == "bfloat16" for side in (first, *sides))
    total = 0.0
    for tensor, parameter in prepared.shapes[first].model.named_parameters():
        shape, rank = tuple(parameter.shape), change.ranks.get(tensor)
        if rank is not None and rank * sum(shape) < prod(shape):
            total += sum(_array(rank * side, "float32") for side in (*shape, 1)) + 2 * GROUP
        elif rank is not None or tensor in change.dense:
            if len(shape) <= 2:
                total += _array(prod(shape), "bfloat16" if half and rank is None else "float32") + 2 * GROUP
            if len(shape) == 2:
                total += _array(min(shape), "float32")
    return total


def _subspaces(prepared: Prepared, found: Mapping[str, Change]) -> int:
    chosen, study = prepared.subspaces, prepared.study
    if chosen is None:
        return 0
    assert study.subspaces is not None
    name = next(iter(study.models))
    shape, half = prepared.shapes[name], study.models[name].dtype == "bfloat16"
    own = [*(n for n, change in found.items() if change.related and (change.ranks or change.dense))]
    deltas = study.subspaces.deltas or own
    layers, n, m = shape.n_layers, len(chosen.fit), len(chosen.evaluate)
    total, kind = 0.0, "bfloat16" if half else "float32"
    for weight, dims in weight_shapes(shape, chosen.start is not None).items():
        count = 1 if weight == "start_embedding" else layers
        if 4 * prod(dims) >= ENTRY_BYTES * count:
            total += count * _array(prod(dims) // count, kind) + GROUP + 46 * count + ENTRY + 400
        else:
            total += _array(prod(dims), kind, count)
    total += 2 * (1 + len(PERSONAS)) * _array(layers * n * shape.d, "float32", layers)
    for persona in PERSONAS:
        tokens = sum(map(len, chosen.token_ids(persona)))
        total += _array(layers * tokens * shape.d, str(TOKEN_BITS), layers)
        total += _array(layers * tokens, "float32", layers)
    total += len(deltas) * sum(_array(layers * rows * shape.d, "float32", layers) for rows in (n, m))
    return int(total + RUN_BYTES * len(deltas) * layers * min(1.0, shape.d / 64))


def _tables(prepared: Prepared, found: Mapping[str, Change]) -> int:
    frames = [prepared.table, prepared.overlap, *prepared.vocabularies.values()]
    frames += list(prepared.encoded.values())
    if prepared.subspaces is not None:
        frames += [prepared.subspaces.table(), prepared.subspaces.tokens_table()]
    total = sum(_parquet(frame) + ENTRY for frame in frames)
    some = range(min(SAMPLED_ROWS, len(prepared.table)))
    share = len(prepared.table) / max(1, len(some))
    for places in prepared.positions.values():
        kept = {name: place.of(some).indices for name, place in places.items()}
        lists = {name: [index.tolist() for index in indices] for name, indices in kept.items()}
        total += share * _parquet(pl.DataFrame(lists)) + ENTRY
    changed = sum(len(change.ranks) + len(change.dense) for change in found.values())
    return int(total + 9000 * len(found) + 120 * changed + 8000)


def _parquet(frame: pl.DataFrame) -> float:
    """Bytes of a table as it is written, judged by its first rows where it is long."""
    some, buffer = frame.head(SAMPLED_ROWS), io.BytesIO()
    some.write_parquet(buffer, compression="zstd", compression_level=3)
    return buffer.tell() * max(1.0, frame.height / max(1, some.height))
