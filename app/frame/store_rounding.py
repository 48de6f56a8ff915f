"""Rounding of what a store keeps: in which dtype, how much was measured, and what of an update it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.stats.rounding_error import BITS, sum_error
from store.reader import Store

PARTS = ("attn_out", "mlp_out")
"""What a block adds to the stream, part by part."""


def dtype_of(store: Store, model: str) -> str:
    """The coarser of the dtypes that a model ran in and that its activations are kept in."""
    names = (store.dtype, str(store.model_info(model).get("dtype", "")))
    return min((name for name in names if name in BITS), key=lambda name: BITS[name], default="float32")


def relative_noise(store: Store, model: str, site: str, block: int) -> float:
    """Measured relative size of what computing again does to a row of a site; 0 where it was not measured."""
    sites = (store.rounding(model) or {}).get("sites", {})
    state = {"resid_pre": block, "resid_post": block + 1}.get(site)
    values = sites.get(site if state is None else "resid", ())
    at = block if state is None else state
    return float(values[at]) if at < len(values) else 0.0


def has_parts(store: Store) -> bool:
    """Whether updates are taken from what adds up to them, which loses nothing."""
    return set(PARTS) <= set(store.components())


def updates(store: Store, model: str, position: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """What each block adds, (n, d), and the share of its length that is rounding.

    attn_out + mlp_out where both are stored: a sum of small numbers; else the difference of two states, each
    rounded at its own, larger size.
    """
    dtype = dtype_of(store, model)

    def read(component: str, at: int) -> np.ndarray:
        return store.activations(model, component, at, position, rows=rows)

    if has_parts(store):
        for block in store.layers(model):
            parts = [read(component, block) for component in PARTS]
            total = parts[0] + parts[1]
            yield total, sum_error(total, parts, dtype)
        return
    last: tuple[int, np.ndarray] | None = None
    for block in store.layers(model):
        before = last[1] if last is not None and last[0] == block else read("resid", block)
        after = read("resid", block + 1)
        delta = after - before
        yield delta, sum_error(delta, (before, after), dtype)
        last = (block + 1, after)
