"""Weights that subspace scores take from a model: what blocks write, what MLPs read, a token's embedding.

Queries, keys, norms and the unembedding are kept for every model (`engine.pieces`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.activations import ACTIVATIONS
from engine.pieces import Piece, gate_weight
from engine.sites import LayerTaps, ModelTaps

__all__ = ["mlp_weights", "subspace_weights", "weight_shapes"]

UP = ("up_proj", "c_fc", "dense_h_to_4h", "fc1")
DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2")
WEIGHT = ("layer", "out", "in")
GAIN = ("layer", "feature")


def mlp_weights(layer: LayerTaps) -> dict[str, Tensor]:
    """up_proj (d_ff, d), down_proj (d, d_ff) and, where there is one, gate_proj (d_ff, d), float32.

    Empty for an MLP that is none of these, such as a mixture of experts.
    """
    found = {name: _weight(layer, names) for name, names in (("up_proj", UP), ("down_proj", DOWN))}
    gate, fused = gate_weight(layer), getattr(layer.mlp, "gate_up_proj", None)
    if found["up_proj"] is None and gate is not None and fused is not None:
        found["up_proj"] = fused.weight.detach().float().chunk(2)[1]
    found["gate_proj"] = None if gate is None else gate.float()
    there = {name: weight for name, weight in found.items() if weight is not None}
    return there if {"up_proj", "down_proj"} <= there.keys() else {}


def _weight(layer: LayerTaps, names: tuple[str, ...]) -> Tensor | None:
    module = _module(layer, names)
    if module is None:
        return None
    weight: Tensor = module.weight.detach().float()
    return weight.T if layer.family.transposed else weight


def _module(layer: LayerTaps, names: tuple[str, ...]) -> Any:
    """The first of the MLP's parts with one of these names that is a projection."""
    parts = (getattr(layer.mlp, name, None) for name in names)
    return next((part for part in parts if isinstance(getattr(part, "weight", None), Tensor)), None)


def weight_shapes(model: ModelTaps, start: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `subspace_weights` gives, in its order; the model may be without weights.

    Args:
        start: whether there is a start token.
    """
    layers, d = model.n_layers, model.d
    found = {
        "v_proj": (layers, model.n_kv_heads * model.head_dim, d),
        "o_proj": (layers, d, model.n_heads * model.head_dim),
    }
    first = mlp_weights(model.layers[0])
    shapes: dict[str, tuple[int, ...]] = {**found, **{n: (layers, *first[n].shape) for n in _common(model)}}
    if model.layers[0].attn_post_norm:
        shapes["attn_write_gain"] = (layers, d)
    if model.layers[0].mlp_post_norm:
        shapes["mlp_write_gain"] = (layers, d)
    return shapes | ({"start_embedding": (d,)} if start else {})


def subspace_weights(model: ModelTaps, start: int | None) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """Every array, with facts for whoever reads it; what the family lacks is left out.

    Writing weights say under "tensors" which parameter of each layer they are, and whether it is stored
    "transposed". Behind a post-norm they are as the model has them, and the norm's gain comes separately.

    Args:
        start: the token whose embedding is given, None for none.
    """
    layers = model.layers
    d = model.d
    values = torch.stack([layer.w_v().reshape(-1, d).cpu() for layer in layers])
    yield _piece("v_proj", values, WEIGHT, "value projections"), {}
    written = torch.stack([layer.w_o().reshape(-1, d).T.cpu() for layer in layers])
    facts = _parameters(model, [layer.o_proj for layer in layers])
    yield _piece("o_proj", written, WEIGHT, "output projection of the attention"), facts
    for name in _common(model):
        weights = torch.stack([mlp_weights(layer)[name].cpu() for layer in layers])
        facts = {}
        if name == "down_proj":
            facts = _parameters(model, [_module(layer, DOWN) for layer in layers])
        if name == "gate_proj":
            facts = {"activation": activation(model)}
        yield _piece(name, weights, WEIGHT, f"{name} of the MLP"), facts
    meaning = "gain of the norm between what is written and the stream"
    if layers[0].attn_post_norm:
        gains = torch.stack([model.gain(layer.attn_contribution).cpu() for layer in layers])
        yield _piece("attn_write_gain", gains, GAIN, meaning), {}
    if layers[0].mlp_post_norm:
        gains = torch.stack([model.gain(layer.mlp_contribution).cpu() for layer in layers])
        yield _piece("mlp_write_gain", gains, GAIN, meaning), {}
    if start is not None:
        embed: Any = model.embed
        row = embed.weight[start].detach().float().cpu()
        meaning = "embedding of BOS, or of EOS where there is no BOS"
        yield _piece("start_embedding", row, ("feature",), meaning), {"token": start}


def activation(model: ModelTaps) -> str | None:
    """Name of the activation of the MLPs' gates."""
    config: Any = model.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None)
    return None if found is None else str(found)


def _common(model: ModelTaps) -> list[str]:
    """The MLP's weights that every layer has; no gate without a known activation."""
    each = [set(mlp_weights(layer)) for layer in model.layers]
    names = set.intersection(*each)
    if activation(model) not in ACTIVATIONS:
        names.discard("gate_proj")
    return [name for name in ("up_proj", "gate_proj", "down_proj") if name in names]


def _parameters(model: ModelTaps, modules: list[Any]) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in model.model.named_parameters()}
    return {
        "tensors": [names[id(module.weight)] for module in modules],
        "transposed": model.family.transposed,
    }


def _piece(name: str, values: Tensor, dims: tuple[str, ...], meaning: str) -> Piece:
    exact = bool(torch.equal(values.to(torch.bfloat16).float(), values))
    return Piece(name, values.contiguous().numpy(), dims, exact, meaning)
