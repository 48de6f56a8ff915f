"""What the pages read is computed once, behind the capture: Grams of every site."""

from __future__ import annotations

import numpy as np

from app import terminal
from engine.analysis.cka import gram
from store.layout import gram_name
from store.reader import Store
from store.writer import StoreWriter

__all__ = ["derive"]


def derive(store: Store, writer: StoreWriter, *, quiet: bool = False) -> None:
    """Writes the Gram matrices that are missing: (layer, prompt, prompt) per model, position, component.

    Grams are of features centred over all prompts, computed in float64 from the *stored* activations, so
    that whoever recomputes them from the store finds the same numbers.
    """
    todo = [
        (model, position, component)
        for model in store.models
        for position in store.positions(model)
        for component in store.components(model)
        if store.position_kind(position) != "many"
        and not writer.has_array(gram_name(model, position, component))
    ]
    for model, position, component in terminal.bar(todo, desc="Grams", unit="site", disable=quiet):
        layers = store.states(model) if component == "resid" else store.layers(model)
        grams = [gram(store.activations(model, component, at, position)) for at in layers]
        writer.write_grams(model, position, component, np.stack(grams).astype(np.float32))
