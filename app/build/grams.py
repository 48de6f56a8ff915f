"""What the pages read is computed once, behind the capture: Grams of every site."""

from __future__ import annotations

import numpy as np
import polars as pl

from app.build.progress import Progress
from app.frame.prompts import sampling
from engine.similarity.cka import gram
from engine.similarity.sampling import keeps_grams, sample_prompts
from store.layout import gram_name
from store.reader import Store
from store.rows import GRAM_PROMPTS
from store.writer import StoreWriter

__all__ = ["derive"]


QUIET = Progress(quiet=True)


def derive(store: Store, writer: StoreWriter, say: Progress = QUIET) -> None:
    """Writes the Gram matrices that are missing: (layer, prompt, prompt) per model, position, component.

    Grams are of features centred over all prompts, computed in float64 from the *stored* activations, so
    that whoever recomputes them from the store finds the same numbers. Beyond the study's
    `similarity_prompts` they are of a random sample, which the table `gram-prompts` names, and only of
    sites that are wider than the sample is long (see `engine.similarity.sampling`).
    """
    most, seed = sampling(store)
    kept = [
        (model, position, component)
        for model in store.models
        for position in store.positions(model)
        for component in store.components(model)
        if store.position_kind(position) != "many"
        and keeps_grams(store.n_prompts, _width(store, model, component), most)
    ]
    rows = sample_prompts(store.prompts, None, most, seed)
    sampled = rows.size < store.n_prompts
    if sampled and kept:
        writer.write_table(GRAM_PROMPTS, pl.DataFrame({"prompt": rows.astype(np.int32)}))
    todo = [place for place in kept if not writer.has_array(gram_name(*place))]
    sites = [
        (place, store.states(place[0]) if place[2] == "resid" else store.layers(place[0])) for place in todo
    ]
    with say.stage("Grams", sum(len(layers) for _, layers in sites), "layer") as advance:
        for place, layers in sites:
            model, position, component = place
            grams = np.empty((len(layers), rows.size, rows.size), dtype=np.float32)
            for number, at in enumerate(layers):
                found = store.activations(model, component, at, position, rows=rows if sampled else None)
                grams[number] = gram(found)
                advance()
            writer.write_grams(model, position, component, grams)


def _width(store: Store, model: str, component: str) -> int:
    """Features of one site."""
    info = store.model_info(model)
    return int(info["n_heads"]) * int(info["head_dim"]) if component == "head_z" else int(info["d"])
