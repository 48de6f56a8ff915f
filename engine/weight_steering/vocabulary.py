"""Weight differences of models whose vocabularies number their tokens otherwise than the steered one's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from engine.errors import ModelError
from engine.lab.experiment import Lab
from engine.models.tokenizer import vocabulary_of
from engine.weights.deltas import WeightDelta
from engine.weights.names import Names
from engine.weights.shared_rows import SharedRows, shared_rows

__all__ = ["refitted", "tell_unshared"]


def refitted(deltas: Iterable[WeightDelta], lab: Lab, model: str) -> Iterator[WeightDelta]:
    """Differences from the study's first model, as differences of another model's tensors.

    Rows of embedding and unembedding are the first model's; they are moved to the rows that the same token
    strings have in `model`. Of strings that only `model` has, nothing changes.
    """
    if model == lab.first:
        yield from deltas
        return
    base, own = (vocabulary_of(lab.tokenizer(name)) for name in (lab.first, model))
    names = Names(lab.model(model).model)
    for delta in deltas:
        rows = None
        if base is not None and own is not None and delta.name in names.by_token:
            rows = shared_rows(base, own, (delta.shape[0], names.shapes[delta.name][0]))
        yield delta if rows is None else _moved(delta, rows)


def _moved(delta: WeightDelta, rows: SharedRows) -> WeightDelta:
    left, dense = (None if values is None else _placed(values, rows) for values in (delta.left, delta.dense))
    shape = (rows.counts[1], *delta.shape[1:])
    return replace(delta, shape=shape, left=left, dense=dense, rows=len(rows.base))


def _placed(values: np.ndarray, rows: SharedRows) -> np.ndarray:
    moved = np.zeros((rows.counts[1], *values.shape[1:]), dtype=values.dtype)
    moved[rows.tuned] = values[rows.base]
    return moved


def tell_unshared(lab: Lab, model: str, others: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """Notes which of the prompts' tokens other models lack: a difference leaves their rows as they are."""
    own = vocabulary_of(lab.tokenizer(model))
    if own is None:
        return
    strings: Mapping[int, str] = {number: token for token, number in own.items()}
    read = [strings.get(token, "") for row in ids for token in row]
    for other in dict.fromkeys(others):
        note = ""
        try:
            known = vocabulary_of(lab.tokenizer(other))
        except ModelError as error:
            known, note = None, f"Whether {other}'s vocabulary has the prompts' tokens is not known: {error}"
        lost = [token for token in read if known is not None and token not in known]
        if lost:
            note = (
                f"{len(lost):,} of {len(read):,} tokens of the prompts ({len(set(lost))} different ones) are "
                f"not in {other}'s vocabulary: steering leaves their embeddings as they are in {model}."
            )
        lab.notes.extend([note] if note and note not in lab.notes else [])
