"""Subspace scores from a store: what a sweep needs, read layer by layer, without a model.

inputs, target = inputs_of(store), target_of(store, "tuned")
prepared = prepare_all(inputs, [target], widest=64)[0]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.live.deltas import read_deltas
from engine.errors import StoreError
from engine.subspaces.gates import ACTIVATIONS
from engine.subspaces.numbers import Delta, Inputs, Target
from engine.subspaces.numbers.inputs import Item
from store.layout import slug
from store.reader import Store

__all__ = [
    "PLACE",
    "PROMPTS",
    "TOKENS",
    "deltas_of",
    "has_subspaces",
    "inputs_of",
    "label_name",
    "notes_of",
    "target_of",
]

PLACE = "subspaces"
"""Group of the arrays: `PLACE/<item>`, items named as in `Inputs`."""

PROMPTS = "subspace-prompts"
"""Table of the prompts that were used: row of the prompts table, split, entry of the personas (fit only)."""

TOKENS = "subspace-tokens"
"""Table of where a fit prompt's tokens lie in the token arrays: persona, prompt (its row), start, count."""

WRITES = {"o_proj": "attn_write_gain", "down_proj": "mlp_write_gain"}
"""Writing weights, and the gain of a norm behind them where the family has one."""

Array = NDArray[np.float32]


def label_name(delta: str, which: str = "label") -> str:
    """Name of the array with a weight change's label, of evaluate ("label") or fit prompts ("label_fit")."""
    return f"{PLACE}/{which}/{slug(delta)}"


def has_subspaces(store: Store) -> bool:
    """Whether the store holds what subspace scores need."""
    return PROMPTS in store.table_names() and bool(deltas_of(store))


def deltas_of(store: Store) -> tuple[str, ...]:
    """Weight changes that carry a label, in the study's order: models, then contrasts."""
    study = store.manifest["study"]
    found = set(store.array_names())
    names = (*store.models[1:], *study.get("contrasts", {}))
    return tuple(name for name in names if label_name(name) in found)


def notes_of(store: Store) -> tuple[str, ...]:
    """What a reader needs to know of how the personas were put on."""
    return tuple(store.attrs(f"{PLACE}/positive")["notes"])


def inputs_of(store: Store, delta: str | None = None) -> Inputs:
    """What a sweep takes from the study's first model. What its family lacks is None.

    Args:
        delta: the weight change that `target` is made of; the first one by default.

    Raises:
        StoreError: the store holds none of it.
    """
    known = _checked(store)
    base, found = store.models[0], set(store.array_names())
    info = store.model_info(base)
    weights = f"weights/{slug(base)}"

    def stored(name: str) -> Item | None:
        return partial(_layer, store, name) if name in found else None

    named = ("clean", "positive", "negative", "up_proj", "gate_proj", "q_proj", "v_proj")
    items: dict[str, Item | None] = {name: stored(f"{PLACE}/{name}") for name in named}
    for persona in ("clean", "positive", "negative"):
        items[f"{persona}_mlp_input"] = stored(f"{PLACE}/{persona}_mlp_input")
    for name, gain in WRITES.items():
        if f"{PLACE}/{name}" in found:
            items[name] = partial(_written, store, name, gain if f"{PLACE}/{gain}" in found else None)
    for persona in ("positive", "negative"):
        aligned = _aligned(store, persona)
        for what in ("tokens", "attention"):
            if f"{PLACE}/{persona}_{what}" in found:
                items[f"{persona}_{what}"] = partial(aligned, f"{PLACE}/{persona}_{what}")
    items["k_proj"] = partial(_heads, store, f"{weights}/w_k")
    if items["q_proj"] is None:  # stores of an earlier version have it under weights/
        items["q_proj"] = partial(_heads, store, f"{weights}/w_q")
    for name in ("q_norm", "k_norm"):
        items[name] = partial(_flat, store, f"{weights}/{name}_gain")
    for name in ("attn_norm", "mlp_norm"):
        items[name] = stored(f"{weights}/{name}_gain")
    for name, array in (("unembedding", "unembedding"), ("final_norm", "final_norm_gain")):
        items[name] = partial(_whole, store, f"{weights}/{array}")
    if f"{PLACE}/start_embedding" in found:
        items["start_embedding"] = partial(_whole, store, f"{PLACE}/start_embedding")
    activation = store.attrs(f"{PLACE}/gate_proj")["activation"] if items["gate_proj"] is not None else "silu"
    return Inputs(
        n_layers=int(info["n_layers"]),
        d=int(info["d"]),
        n_heads=int(info["n_heads"]),
        n_kv_heads=int(store.attrs(f"{weights}/w_k")["shape"][1]),
        target=target_of(store, known[0] if delta is None else delta),
        activation=ACTIVATIONS[activation],
        **items,
    )


def target_of(store: Store, delta: str) -> Target:
    """One weight change, its label read from the store, its tensors layer by layer.

    Raises:
        StoreError: the store has no label of this change.
    """
    known = _checked(store)
    if delta not in known:
        raise StoreError(
            f"The store has no label of the weight change {delta!r}.",
            expected=", ".join(known),
            given=repr(delta),
            next_step="choose one of these, or add it to subspaces.deltas and compute another store.",
        )
    return Target(
        partial(_layer, store, label_name(delta)),
        partial(_layer, store, label_name(delta, "label_fit")),
        _changes(store, delta),
        delta,
    )


def _checked(store: Store) -> tuple[str, ...]:
    known = deltas_of(store) if PROMPTS in store.table_names() else ()
    if not known:
        raise StoreError(
            "The store holds nothing for subspace scores.",
            expected="personas and labels, which precompute.py writes for a study with [subspaces]",
            given="a study without it, or one whose weight changes are not defined for every tensor",
            next_step="add [subspaces] to the study and compute another store.",
        )
    return known


def _layer(store: Store, name: str, layer: int) -> Array:
    return store.array(name, first=layer)


def _whole(store: Store, name: str, layer: int) -> Array:
    del layer
    return store.array(name)


def _flat(store: Store, name: str, layer: int) -> Array:
    return store.array(name, first=layer).ravel()


def _heads(store: Store, name: str, layer: int) -> Array:
    values = store.array(name, first=layer)
    return values.reshape(-1, values.shape[-1])


def _written(store: Store, name: str, gain: str | None, layer: int) -> Array:
    """A writing weight (d, ·), the gain of the norm behind it on its rows."""
    weight = store.array(f"{PLACE}/{name}", first=layer)
    return weight if gain is None else weight * store.array(f"{PLACE}/{gain}", first=layer)[:, None]


def _aligned(store: Store, persona: str) -> Callable[[str, int], Array]:
    """Reads a token array of a persona, prompts × tokens, right-aligned with zeros in front."""
    where = store.table(TOKENS).filter(pl.col("persona") == persona)
    counts = where["count"].to_numpy()
    starts = where["start"].to_numpy()
    prompt = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    token = counts.max(initial=0) - counts[prompt] + within
    source = starts[prompt] + within

    def read(name: str, layer: int) -> Array:
        flat = store.array(name, first=layer)
        out = np.zeros((len(counts), counts.max(initial=0), *flat.shape[1:]), dtype=np.float32)
        out[prompt, token] = flat[source]
        return out

    return read


def _changes(store: Store, delta: str) -> Callable[[int], dict[str, Delta]]:
    """The changed writing tensors of a layer, as `Delta`s."""
    found = set(store.array_names())
    about: dict[str, dict[str, Any]] = {
        name: store.attrs(f"{PLACE}/{name}") for name in WRITES if f"{PLACE}/{name}" in found
    }

    @lru_cache(maxsize=2)  # a layer's change is asked for several times in a row
    def read(layer: int) -> dict[str, Delta]:
        tensors = {facts["tensors"][layer]: name for name, facts in about.items()}
        changes = {}
        for change in read_deltas(store, delta, tensors.keys()):
            name = tensors[change.name]
            left, right = (change.matrix(), None) if change.left is None else (change.left, change.right)
            if about[name]["transposed"]:
                left, right = (left.T, None) if right is None else (right.T, left.T)
            gain = WRITES[name]
            if f"{PLACE}/{gain}" in found:
                left = left * store.array(f"{PLACE}/{gain}", first=layer)[:, None]
            changes[name] = Delta(left, right)
        return changes

    return read
