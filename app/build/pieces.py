"""Pieces of weights in a store: what models have in common is computed once and kept once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.models.loading import LoadedModel
from engine.models.pieces import Entry, Piece, model_pieces
from store.layout import slug
from store.reader import Store
from store.shared import ENTRY_BYTES, Part, write_parts
from store.writer import StoreWriter

__all__ = ["kept", "piece_steps", "write_piece", "write_pieces"]

Array = np.ndarray[Any, Any]
Advance = Callable[[], object]
Made = Mapping[str, tuple[str, int]]
"""Hash of what an entry was made of -> the model that has it, and its place there."""


def write_pieces(writer: StoreWriter, lm: LoadedModel, advance: Advance = lambda: None) -> None:
    """Writes the pieces of a model that are missing; `advance` is called after each entry."""
    for piece in model_pieces(lm.taps):
        write_piece(writer, f"weights/{slug(lm.name)}", piece, {}, advance)


def piece_steps(lm: LoadedModel) -> int:
    """How often `write_pieces` advances."""
    return sum(1 if piece.whole else piece.shape[0] for piece in model_pieces(lm.taps))


def write_piece(
    writer: StoreWriter, place: str, piece: Piece, facts: Mapping[str, Any], advance: Advance = lambda: None
) -> None:
    """Writes one piece, if it is missing: as shared parts, or as one array where its entries are small.

    Args:
        place: what it lies under, "weights/<model>". facts: attributes beside its meaning.
    """
    name = f"{place}/{piece.name}"
    count = 1 if piece.whole else piece.shape[0]
    if writer.has_array(name):
        for _ in range(count):
            advance()
        return
    made_of = None if piece.made_of is None else [piece.made_of(i) for i in range(count)]
    made = {} if made_of is None else _made(writer, place, piece.name)
    attrs = {"meaning": piece.meaning, **facts} | ({} if made_of is None else {"made_of": made_of})
    large = 4 * int(np.prod(piece.shape)) >= ENTRY_BYTES * count
    if large or piece.keys is not None:
        parts = _parts(writer, place, piece, made_of, made, advance)
        write_parts(writer, name, parts, piece.shape, piece.dims, attrs, whole=piece.whole)
        return
    store, values = Store(writer.root), []
    for i in range(count):
        known = None if made_of is None else made.get(made_of[i])
        if known is None:
            values.append(kept(piece.entry(i), piece.exact))
        else:
            values.append(Part(store.array(f"weights/{known[0]}/{piece.name}", first=known[1])))
        advance()
    array = values[0].values if piece.whole else np.stack([_widened(part) for part in values])
    half = all(part.bfloat16 for part in values)
    writer.write_array(name, array, piece.dims, attrs, bfloat16=half)


def _parts(
    writer: StoreWriter,
    place: str,
    piece: Piece,
    made_of: list[str] | None,
    made: Made,
    advance: Advance,
) -> Iterator[Part | str]:
    """Each entry, or the key of one that another model has."""
    keys = (writer.group_attrs(f"{place}/w_k") or {}).get("parts")
    for i in range(1 if piece.whole else piece.shape[0]):
        known = None if made_of is None else made.get(made_of[i])
        if known is None:
            entry = piece.entry(i)
            if entry.factor and not keys:  # the keys are too small for parts, so there is nothing to refer to
                yield kept(Entry(piece.at(i)), piece.exact)
            else:
                yield kept(entry, piece.exact, keys[i] if entry.factor and keys else None)
        else:
            yield (writer.group_attrs(f"weights/{known[0]}/{piece.name}") or {})["parts"][known[1]]
        advance()


def _made(writer: StoreWriter, place: str, piece: str) -> Made:
    """Entries of a piece that earlier models have."""
    found: dict[str, tuple[str, int]] = {}
    store = Store(writer.root)
    for model in map(slug, writer.plan.models):
        name = f"weights/{model}/{piece}"
        if name.startswith(f"{place}/") or not writer.has_array(name):
            continue
        for i, key in enumerate(store.attrs(name).get("made_of", ())):
            found.setdefault(key, (model, i))
    return found


def kept(entry: Entry, exact: bool, keys: str | None = None) -> Part:
    """An entry as it is kept: weights as bfloat16 where that holds them exactly."""
    values = entry.values
    if isinstance(values, Tensor):
        if values.dtype == torch.bfloat16:
            bits = values.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
            return Part(bits, True, keys)
        values = values.detach().float().cpu().contiguous().numpy()
    half = exact and values.dtype == np.float32 and _is_bfloat16(values)
    return Part(np.ascontiguousarray(values), half, keys)


def _is_bfloat16(values: Array) -> bool:
    """Whether the lower half of every float32 is empty."""
    words = np.ascontiguousarray(values).view(np.uint32)
    return not (words.reshape(-1)[:4096] & 0xFFFF).any() and not (words & 0xFFFF).any()


def _widened(part: Part) -> Array:
    from store.bfloat16 import widen

    return widen(part.values) if part.values.dtype == np.uint16 else part.values
