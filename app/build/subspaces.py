"""Subspace scores in a store: what a sweep needs of the first model, captured once.

The model is run in float32 whatever its dtype, because a label is a small difference of two large streams;
a 16-bit one is widened block by block.
Arrays are written one by one; what a killed run left whole is not computed again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from app.build.pieces import write_piece
from app.build.prepare import Prepared
from app.build.progress import Progress
from app.live.deltas import StoredDeltas, steerable
from app.live.subspaces import PLACE, label_name
from engine.errors import ModelError
from engine.models.check import SelfCheck
from engine.models.loading import LoadedModel, load
from engine.models.pieces import rounded
from engine.passes.blockwise import in_float32
from engine.subspaces.capture import capture_labels, capture_streams
from engine.subspaces.checks import check_label, check_streams
from engine.subspaces.prompts import PERSONAS, SubspacePrompts
from engine.subspaces.weights import subspace_weights, weight_shapes
from engine.threads import one_thread
from store.reader import Store
from store.writer import StoreWriter

__all__ = ["subspace_checks", "write_subspaces"]

log = logging.getLogger(__name__)

CHECKED_PROMPTS = 4
TOKEN_BITS = 10
"""Bits after the leading one that the stream at all tokens keeps, 5e-4 of each number: it is by far the
largest of these arrays, and what is made of it are principal directions. The rest doesn't compress."""
STREAM = ("layer", "prompt", "feature")


def write_subspaces(prepared: Prepared, writer: StoreWriter, say: Progress) -> list[dict[str, Any]]:
    """Writes what is missing for a study with [subspaces]; returns the self-checks, none without.

    Raises:
        PatchbayError: a weight change that the study names and that is not defined for every tensor, or
            can't be steered.
    """
    chosen = prepared.subspaces
    if chosen is None:
        return []
    name = next(iter(prepared.study.models))
    with say.stage(f"subspace scores: loading {name}", 1, "model") as done:
        lm = load(prepared.study.models[name], name)
        done()
    deltas = _deltas(prepared, Store(writer.root))
    with one_thread():
        _write_weights(writer, lm, chosen, say)
    with in_float32(lm):
        _write_streams(prepared, writer, lm, chosen, say)
        labelled = [delta for delta in deltas if _could_label(prepared, writer, lm, chosen, delta, say)]
        checks = list(subspace_checks(prepared, Store(writer.root), lm, labelled, say))
    return [check.to_json() | {"model": name} for check in checks]


def _deltas(prepared: Prepared, store: Store) -> tuple[str, ...]:
    """The weight changes that the study names, or all that are defined for every tensor."""
    study = prepared.study
    assert study.subspaces is not None
    every = (*list(study.models)[1:], *study.contrasts)
    return study.subspaces.deltas or tuple(name for name in every if steerable(store, name))


def _write_weights(writer: StoreWriter, lm: LoadedModel, chosen: SubspacePrompts, say: Progress) -> None:
    wanted = weight_shapes(lm.taps, chosen.start is not None)
    if all(writer.has_array(f"{PLACE}/{name}") for name in wanted):
        return
    total = sum(1 if name == "start_embedding" else shape[0] for name, shape in wanted.items())
    with say.stage("subspace scores: weights", total, "part") as stage:
        for piece, facts in subspace_weights(lm.taps, chosen.start):
            write_piece(writer, PLACE, piece, facts, stage)


def _write_streams(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, chosen: SubspacePrompts, say: Progress
) -> None:
    """The stream on fit prompts: under no persona at the last token, under both at all tokens."""
    budget = prepared.study.capture.batch_tokens
    clean = [prepared.token_ids(lm.name)[row] for row in chosen.fit]
    for persona in ("clean", *PERSONAS):
        names = [persona, f"{persona}_mlp_input"]
        names += [] if persona == "clean" else [f"{persona}_tokens", f"{persona}_attention"]
        if all(writer.has_array(f"{PLACE}/{name}") for name in names):
            continue
        token_ids = clean if persona == "clean" else chosen.token_ids(persona)
        under = "no persona" if persona == "clean" else f"the {persona} persona"
        with say.stage(f"subspace scores: streams under {under}", len(token_ids), "prompt") as stage:
            found = capture_streams(lm, token_ids, budget, _ids(prepared, chosen.fit), advance=stage)
        arrays: dict[str, tuple[np.ndarray, tuple[str, ...], str]] = {
            names[0]: (found.last, STREAM, "stream leaving every block at the last token"),
            names[1]: (found.mlp_input, STREAM, "what the MLP receives at the last token, after its norm"),
        }
        if persona != "clean":
            meaning = "stream leaving every block at all tokens; table subspace-tokens says whose"
            arrays[names[2]] = (rounded(found.tokens, TOKEN_BITS), ("layer", "token", "feature"), meaning)
            meaning = "the last token's attention, mean over heads"
            arrays[names[3]] = (found.attention, ("layer", "token"), meaning)
        for name, (values, dims, meaning) in arrays.items():
            attrs = {"meaning": f"{meaning}, under {under}", "notes": list(chosen.notes)}
            writer.write_array(f"{PLACE}/{name}", values, dims, attrs)


def _ids(prepared: Prepared, rows: Iterable[int]) -> list[str]:
    """Ids of prompts, for messages."""
    return prepared.table["id"].gather(list(rows)).to_list()


def _could_label(
    prepared: Prepared,
    writer: StoreWriter,
    lm: LoadedModel,
    chosen: SubspacePrompts,
    delta: str,
    say: Progress,
) -> bool:
    """Writes a label; one that the study doesn't ask for by name may be left out, which is logged."""
    assert prepared.study.subspaces is not None
    try:
        _write_labels(prepared, writer, lm, chosen, delta, say)
    except ModelError as error:
        if delta in prepared.study.subspaces.deltas:
            raise
        log.warning("subspace scores leave out %s: %s", delta, error)
        return False
    return True


def _write_labels(
    prepared: Prepared,
    writer: StoreWriter,
    lm: LoadedModel,
    chosen: SubspacePrompts,
    delta: str,
    say: Progress,
) -> None:
    places = {"label": chosen.evaluate, "label_fit": chosen.fit}
    if all(writer.has_array(label_name(delta, which)) for which in places):
        return
    rows = np.concatenate(list(places.values()))
    token_ids = [prepared.token_ids(lm.name)[row] for row in rows]
    budget = prepared.study.capture.batch_tokens
    with say.stage(f"subspace scores: label of {delta}", 2 * len(rows), "prompt") as stage:
        deltas = StoredDeltas(Store(writer.root), delta)
        found = capture_labels(lm, deltas, token_ids, budget, _ids(prepared, rows), advance=stage)
    meaning = f"stream with W + ΔW minus stream with W − ΔW at the last token, ΔW of {delta}"
    start = 0
    for which, own in places.items():
        values = found[:, start : start + len(own)]
        writer.write_array(label_name(delta, which), values, STREAM, {"meaning": meaning, "delta": delta})
        start += len(own)


def subspace_checks(
    prepared: Prepared, store: Store, lm: LoadedModel, deltas: Sequence[str], say: Progress
) -> Iterator[SelfCheck]:
    """Stored streams and labels of a few prompts against plain forward passes of a model in float32."""
    chosen = prepared.subspaces
    assert chosen is not None
    token_ids = prepared.token_ids(lm.name)
    fit, evaluate = _few(len(chosen.fit)), _few(len(chosen.evaluate))
    steps = len(fit) + 2 * len(deltas) * len(evaluate)
    with say.stage("subspace scores: self-checks", steps, "prompt") as stage:
        clean = store.array(f"{PLACE}/clean")[:, fit]
        yield check_streams(lm, [token_ids[chosen.fit[i]] for i in fit], clean, stage)
        ids = [token_ids[chosen.evaluate[i]] for i in evaluate]
        for delta in deltas:
            label = store.array(label_name(delta))[:, evaluate]
            yield check_label(lm, delta, StoredDeltas(store, delta), ids, label, stage)


def _few(n: int) -> list[int]:
    """Evenly spread indices, the longest and the shortest prompt among them."""
    return sorted(set(np.linspace(0, n - 1, min(n, CHECKED_PROMPTS)).round().astype(int).tolist()))
