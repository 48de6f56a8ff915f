"""Gram matrices of prompts from an open store: kept ones, or made from activations where none are kept."""

from __future__ import annotations

import numpy as np

from engine.similarity import cka
from engine.similarity.sampling import MOST, sample_prompts
from store.reader import Store

__all__ = ["grams", "looked_at", "sampling", "width"]


def sampling(store: Store) -> tuple[int, int]:
    """(prompts that similarity looks at, at most; seed) of a store's study."""
    study = store.manifest.get("study") or {}
    return int((study.get("capture") or {}).get("similarity_prompts", MOST)), int(study.get("seed", 0))


def width(store: Store, model: str, component: str) -> int:
    """Features of one site."""
    info = store.model_info(model)
    return int(info["n_heads"]) * int(info["head_dim"]) if component == "head_z" else int(info["d"])


def looked_at(store: Store, rows: np.ndarray) -> np.ndarray:
    """The prompts that stand for `rows` in similarity, ascending: a random sample where they are many.

    Where Grams of a sample are kept it is that sample's part of `rows`, else one drawn from `rows`.
    """
    kept = store.gram_prompts()
    if kept is not None:
        return np.intersect1d(kept, rows, assume_unique=True)
    return sample_prompts(store.prompts, rows, *sampling(store))


def grams(store: Store, model: str, site: str, position: str, rows: np.ndarray) -> np.ndarray:
    """Centred Gram matrices of every captured block over `rows` (ascending), (block, m, m) float32."""
    if store.has_grams(model, site, position) or store.position_kind(position) == "many":
        whole, kept = store.grams(model, site, position), store.gram_prompts()
        if rows.size == whole.shape[-1]:
            return whole
        return cka.sub_gram(whole, rows if kept is None else np.searchsorted(kept, rows))
    layers = store.layers(model)
    out = np.empty((len(layers), rows.size, rows.size), dtype=np.float32)
    for number, block in enumerate(layers):
        out[number] = cka.gram(store.activations(model, site, block, position, rows=rows), np.float32)
    return out
