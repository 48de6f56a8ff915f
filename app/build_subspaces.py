"""Subspace scores in a store: what a sweep needs of the first model, captured once.

The model is run in float32 whatever its dtype, because a label is a small difference of two large streams.
Arrays are written one by one; what a killed run left whole is not computed again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from app.build_weights import read_deltas, steerable
from app.prepare import Prepared
from app.subspace_inputs import PLACE, label_name
from engine.errors import ModelError
from engine.model import LoadedModel, load
from engine.results import SelfCheck
from engine.subspace_capture import capture_labels, capture_streams
from engine.subspace_checks import check_label, check_streams
from engine.subspace_prompts import PERSONAS, SubspacePrompts
from engine.subspace_weights import subspace_weights, weight_shapes
from store.reader import Store
from store.writer import StoreWriter

__all__ = ["in_float32", "subspace_checks", "write_subspaces"]

log = logging.getLogger(__name__)

CHECKED_PROMPTS = 4
STREAM = ("layer", "prompt", "feature")


def write_subspaces(prepared: Prepared, writer: StoreWriter) -> list[dict[str, Any]]:
    """Writes what is missing for a study with [subspaces]; returns the self-checks, none without.

    Raises:
        PatchbayError: a weight change that the study names and that is not defined for every tensor, or
            can't be steered.
    """
    chosen = prepared.subspaces
    if chosen is None:
        return []
    name = next(iter(prepared.study.models))
    lm = in_float32(load(prepared.study.models[name], name))
    deltas = _deltas(prepared, Store(writer.root))
    _write_weights(writer, lm, chosen)
    _write_streams(prepared, writer, lm, chosen)
    labelled = [delta for delta in deltas if _could_label(prepared, writer, lm, chosen, delta)]
    checks = subspace_checks(prepared, Store(writer.root), lm, labelled)
    return [check.to_json() | {"model": name} for check in checks]


def in_float32(lm: LoadedModel) -> LoadedModel:
    """The model, in place, with the same weights in float32."""
    lm.model.float()
    lm.dtype = torch.float32
    return lm


def _deltas(prepared: Prepared, store: Store) -> tuple[str, ...]:
    """The weight changes that the study names, or all that are defined for every tensor."""
    study = prepared.study
    assert study.subspaces is not None
    every = (*list(study.models)[1:], *study.contrasts)
    return study.subspaces.deltas or tuple(name for name in every if steerable(store, name))


def _write_weights(writer: StoreWriter, lm: LoadedModel, chosen: SubspacePrompts) -> None:
    wanted = weight_shapes(lm.taps, chosen.start is not None)
    if all(writer.has_array(f"{PLACE}/{name}") for name in wanted):
        return
    for piece, facts in subspace_weights(lm.taps, chosen.start):
        attrs = {"meaning": piece.meaning, **facts}
        writer.write_array(f"{PLACE}/{piece.name}", piece.values, piece.dims, attrs, bfloat16=piece.bfloat16)


def _write_streams(prepared: Prepared, writer: StoreWriter, lm: LoadedModel, chosen: SubspacePrompts) -> None:
    """The stream on fit prompts: under no persona at the last token, under both at all tokens."""
    budget = prepared.study.capture.batch_tokens
    clean = [prepared.token_ids(lm.name)[row] for row in chosen.fit]
    for persona in ("clean", *PERSONAS):
        names = [persona, f"{persona}_mlp_input"]
        names += [] if persona == "clean" else [f"{persona}_tokens", f"{persona}_attention"]
        if all(writer.has_array(f"{PLACE}/{name}") for name in names):
            continue
        token_ids = clean if persona == "clean" else chosen.token_ids(persona)
        found = capture_streams(lm, token_ids, budget)
        under = "no persona" if persona == "clean" else f"the {persona} persona"
        arrays: dict[str, tuple[np.ndarray, tuple[str, ...], str]] = {
            names[0]: (found.last, STREAM, "stream leaving every block at the last token"),
            names[1]: (found.mlp_input, STREAM, "what the MLP receives at the last token, after its norm"),
        }
        if persona != "clean":
            meaning = "stream leaving every block at all tokens; table subspace-tokens says whose"
            arrays[names[2]] = (found.tokens, ("layer", "token", "feature"), meaning)
            meaning = "the last token's attention, mean over heads"
            arrays[names[3]] = (found.attention, ("layer", "token"), meaning)
        for name, (values, dims, meaning) in arrays.items():
            attrs = {"meaning": f"{meaning}, under {under}", "notes": list(chosen.notes)}
            writer.write_array(f"{PLACE}/{name}", values, dims, attrs)


def _could_label(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, chosen: SubspacePrompts, delta: str
) -> bool:
    """Writes a label; one that the study doesn't ask for by name may be left out, which is logged."""
    assert prepared.study.subspaces is not None
    try:
        _write_labels(prepared, writer, lm, chosen, delta)
    except ModelError as error:
        if delta in prepared.study.subspaces.deltas:
            raise
        log.warning("subspace scores leave out %s: %s", delta, error)
        return False
    return True


def _write_labels(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, chosen: SubspacePrompts, delta: str
) -> None:
    places = {"label": chosen.evaluate, "label_fit": chosen.fit}
    if all(writer.has_array(label_name(delta, which)) for which in places):
        return
    rows = np.concatenate(list(places.values()))
    token_ids = [prepared.token_ids(lm.name)[row] for row in rows]
    budget = prepared.study.capture.batch_tokens
    found = capture_labels(lm, read_deltas(Store(writer.root), delta), token_ids, budget)
    meaning = f"stream with W + ΔW minus stream with W − ΔW at the last token, ΔW of {delta}"
    start = 0
    for which, own in places.items():
        values = found[:, start : start + len(own)]
        writer.write_array(label_name(delta, which), values, STREAM, {"meaning": meaning, "delta": delta})
        start += len(own)


def subspace_checks(
    prepared: Prepared, store: Store, lm: LoadedModel, deltas: Iterable[str]
) -> Iterator[SelfCheck]:
    """Stored streams and labels of a few prompts against plain forward passes of a model in float32."""
    chosen = prepared.subspaces
    assert chosen is not None
    token_ids = prepared.token_ids(lm.name)
    few = _few(len(chosen.fit))
    clean = store.array(f"{PLACE}/clean")[:, few]
    yield check_streams(lm, [token_ids[chosen.fit[i]] for i in few], clean)
    few = _few(len(chosen.evaluate))
    for delta in deltas:
        label = store.array(label_name(delta))[:, few]
        yield check_label(
            lm, delta, list(read_deltas(store, delta)), [token_ids[chosen.evaluate[i]] for i in few], label
        )


def _few(n: int) -> list[int]:
    """Evenly spread indices, the longest and the shortest prompt among them."""
    return sorted(set(np.linspace(0, n - 1, min(n, CHECKED_PROMPTS)).round().astype(int).tolist()))
