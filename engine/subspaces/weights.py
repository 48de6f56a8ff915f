"""Weights that subspace scores take from a model: what blocks write, what MLPs read, a token's embedding.

Keys, norms and the unembedding are kept for every model (`engine.models.pieces`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from engine.errors import ModelError
from engine.models.pieces import Entry, Piece, gate_weight
from engine.models.sites import LayerTaps, ModelTaps
from engine.subspaces.gates import ACTIVATIONS

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

    Raises:
        ModelError: its attention has no such weights, or can't be run on packed tokens, from which the last
            token's attention is read.
    """
    if not (model.keyed and model.family.packs):
        raise ModelError(
            "Subspace scores aren't defined for this model.",
            expected="queries and keys that are linear maps of the stream in every block, and attention that "
            "runs on packed tokens",
            given=f"a {model.family.name} model",
            next_step="leave [subspaces] out of the study.",
        )
    layers, d = model.n_layers, model.d
    found = {
        "q_proj": (layers, model.n_heads * model.head_dim, d),
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
    layers, d = model.layers, model.d
    shapes = weight_shapes(model, start is not None)

    def piece(name: str, dims: tuple[str, ...], meaning: str, of: Callable[[LayerTaps], Tensor]) -> Piece:
        return Piece(name, dims, shapes[name], meaning, lambda i: Entry(of(layers[i])), exact=True)

    yield piece("q_proj", WEIGHT, "query projections", lambda layer: layer.w_q().reshape(-1, d)), {}
    yield piece("v_proj", WEIGHT, "value projections", lambda layer: layer.w_v().reshape(-1, d)), {}
    facts = _parameters(model, [layer.o_proj for layer in layers])
    meaning = "output projection of the attention"
    yield piece("o_proj", WEIGHT, meaning, lambda layer: layer.w_o().reshape(-1, d).T), facts
    for name in _common(model):
        facts = {}
        if name == "down_proj":
            facts = _parameters(model, [_module(layer, DOWN) for layer in layers])
        if name == "gate_proj":
            facts = {"activation": activation(model)}
        yield piece(name, WEIGHT, f"{name} of the MLP", partial(_of_mlp, name)), facts
    meaning = "gain of the norm between what is written and the stream"
    if layers[0].attn_post_norm:
        yield piece("attn_write_gain", GAIN, meaning, lambda at: model.gain(at.attn_contribution)), {}
    if layers[0].mlp_post_norm:
        yield piece("mlp_write_gain", GAIN, meaning, lambda at: model.gain(at.mlp_contribution)), {}
    if start is not None:
        embed: Any = model.embed
        meaning = "embedding of BOS, or of EOS where there is no BOS"
        name, row = "start_embedding", embed.weight[start].detach()
        found = Piece(name, ("feature",), (d,), meaning, lambda _: Entry(row), whole=True, exact=True)
        yield found, {"token": start}


def _of_mlp(name: str, layer: LayerTaps) -> Tensor:
    return mlp_weights(layer)[name]


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
