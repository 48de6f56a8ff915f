"""Whether two loaded models have a common origin."""

from __future__ import annotations

from torch import nn

from engine.models.tensor_parts import norm_of
from engine.weights.deltas import weight_deltas
from engine.weights.names import Names, unmatched
from engine.weights.relatedness import Matrix, Relatedness, fixed_start, relatedness

__all__ = ["compare"]


def compare(base: nn.Module, tuned: nn.Module) -> Relatedness:
    """Two loaded models, by their places in the text model.

    Raises:
        ModelError: a weight is not finite.
    """
    one, other = Names(base), Names(tuned)
    lost = unmatched(one, other)
    apart = {delta.name: delta for delta in weight_deltas(base, tuned, keep=False)}
    reads = getattr(base, "get_input_embeddings", lambda: None)()
    inputs = set() if reads is None else {id(value) for value in reads.parameters()}
    found = []
    for name, value in base.named_parameters():
        if (
            value.ndim >= 2
            and not fixed_start(name)
            and (one.decoder == other.decoder or name in one.places.values())
        ):
            size, delta, embedding = norm_of(value.detach()), apart.get(name), id(value) in inputs
            if name in lost:
                found.append(Matrix(size, None, None, embedding))
            elif delta is None:
                found.append(Matrix(size, 0.0, size, embedding))
            else:
                found.append(Matrix(size, delta.norm, delta.tuned, embedding))
    more = [
        name
        for name, why in lost.items()
        if why == "additional" and len(other.shapes.get(name, ())) >= 2 and not fixed_start(name)
    ]
    return relatedness(found, len(more))
