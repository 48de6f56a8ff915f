"""Parts of a model's weights that analyses need later, when no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.analysis.subspace import head_kernel_svd, key_frame
from engine.sites import LayerTaps, ModelTaps

__all__ = ["GATE_PIECES", "PIECES", "Piece", "gate_weight", "model_pieces", "piece_names"]

PIECES = (
    "w_q",
    "w_k",
    "kernel_right",
    "kernel_sigma",
    "attn_norm_gain",
    "q_norm_gain",
    "k_norm_gain",
    "mlp_norm_gain",
    "final_norm_gain",
    "unembedding",
)
"""Names of what `model_pieces` gives for every model, in its order."""
GATE_PIECES = ("gate_gram", "gate_moments")
"""What follows for models whose MLPs have a gate."""


@dataclass(frozen=True)
class Piece:
    """One named array of weights.

    Attributes:
        name: under the model's weights in the store.
        values: float32, exactly bfloat16 where `bfloat16` is set; float64 where float32 would not do.
        dims: a name per axis.
        bfloat16: the model keeps this tensor in bfloat16, so two bytes hold it exactly.
        meaning: one line for whoever opens the store without this code.
    """

    name: str
    values: np.ndarray
    dims: tuple[str, ...]
    bfloat16: bool
    meaning: str


def model_pieces(model: ModelTaps) -> Iterator[Piece]:
    """Query and key projections per head, head-kernel singular vectors, norms, unembedding, gates.

    The head kernel of head i is K_i = W_Q,iᵀ W_K,g(i), at relative position 0 (without RoPE) and
    without biases; its right singular vectors are the key side. Norm gains are kept beside it, not
    folded in.
    """
    half = next(model.model.parameters()).dtype == torch.bfloat16
    layers = model.layers
    w_q = torch.stack([layer.w_q().cpu() for layer in layers])
    w_k = torch.stack([layer.w_k().cpu() for layer in layers])
    yield _piece("w_q", w_q, "layer head head_feature feature", half, "query projection of every head")
    yield _piece("w_k", w_k, "layer kv_head head_feature feature", half, "key projection of every key head")
    kernels = [head_kernel_svd(q.numpy(), k.numpy()) for q, k in zip(w_q, w_k, strict=True)]
    right = np.stack([kernel.right for kernel in kernels])
    sigma = np.stack([kernel.sigma for kernel in kernels])
    meaning = "right singular vectors (key side) of every head kernel W_Qᵀ W_K, columns by singular value"
    yield Piece("kernel_right", _f32(right), ("layer", "head", "feature", "rank"), False, meaning)
    meaning = "singular values of every head kernel W_Qᵀ W_K"
    yield Piece("kernel_sigma", _f32(sigma), ("layer", "head", "rank"), False, meaning)
    gains = torch.stack([model.gain(layer.input_norm).cpu() for layer in layers])
    yield _piece("attn_norm_gain", gains, "layer feature", half, "gain of the norm before the attention")
    of_q = torch.stack([_head_gains(model, layer.q_norm, model.n_heads) for layer in layers])
    of_k = torch.stack([_head_gains(model, layer.k_norm, model.n_kv_heads) for layer in layers])
    none = "ones where there is no such norm"
    meaning = f"gain of the norm of every head's queries; {none}"
    yield _piece("q_norm_gain", of_q, "layer head head_feature", half, meaning)
    meaning = f"gain of the norm of every key head's keys; {none}"
    yield _piece("k_norm_gain", of_k, "layer kv_head head_feature", half, meaning)
    gains = torch.stack([model.gain(layer.mlp_norm).cpu() for layer in layers])
    yield _piece("mlp_norm_gain", gains, "layer feature", half, "gain of the norm before the MLP")
    yield _piece("final_norm_gain", model.gain(model.final_norm).cpu(), "feature", half, "final norm's gain")
    unembedding: Any = model.unembedding
    weight = unembedding.weight.detach().float().cpu()
    yield _piece("unembedding", weight, "token feature", half, "unembedding, one row a token")

    if any(gate_weight(layer) is not None for layer in layers):
        yield from _gate_pieces(model, right)


def piece_names(model: ModelTaps) -> tuple[str, ...]:
    """Names of what `model_pieces` gives for this model, in its order."""
    gated = any(gate_weight(layer) is not None for layer in model.layers)
    return PIECES + GATE_PIECES if gated else PIECES


def gate_weight(layer: LayerTaps) -> Tensor | None:
    """The MLP's gate projection W_gate, (width of the MLP, d), or None: no gate, or one for each expert."""
    gate = getattr(layer.mlp, "gate_proj", None)
    if gate is not None:
        weight: Tensor = gate.weight.detach()
        return weight
    fused = getattr(layer.mlp, "gate_up_proj", None)  # Phi-3: the gate's rows come first
    return None if not hasattr(fused, "weight") else fused.weight.detach().chunk(2)[0]  # type: ignore[union-attr]


def _gate_pieces(model: ModelTaps, right: np.ndarray) -> Iterator[Piece]:
    """What W_gate reads, seen only from where the same layer's keys read.

    Every Z of a layer lies in the span of its keys, so ‖W_gate Z‖² follows from one Gram matrix on key
    directions F: (g·d_h)² numbers a layer (4 MB for 8 key heads of 128), d² where that is not fewer.
    """
    full = model.n_kv_heads * model.head_dim >= model.d
    size = model.d if full else model.n_kv_heads * model.head_dim
    grams = np.zeros((model.n_layers, size, size), dtype=np.float32)
    moments = np.full((model.n_layers, 2), np.nan)
    for number, layer in enumerate(model.layers):
        found = gate_weight(layer)
        if found is None:
            continue
        weight = found.float()
        small = weight.T @ weight if weight.shape[1] <= weight.shape[0] else weight @ weight.T
        moments[number] = float(small.diagonal().double().sum()), float(small.double().square().sum())
        frame = None if full else key_frame(_f32(right[number]), model.n_kv_heads)
        if frame is None:
            grams[number] = (weight.T @ weight).cpu().numpy()
        else:
            read = weight @ torch.from_numpy(_f32(frame)).to(weight.device)
            grams[number] = (read.T @ read).cpu().numpy()
    what = "input coordinates" if full else "key directions: kernel_right of each key head's first query head"
    meaning = f"Gram matrix of the MLP's gate projection on {what}; zero where a layer has no single gate"
    yield Piece("gate_gram", grams, ("layer", "direction", "other_direction"), False, meaning)
    meaning = "tr WᵀW and ‖WᵀW‖² of the gate projection W; NaN where a layer has no single gate"
    yield Piece("gate_moments", moments, ("layer", "moment"), False, meaning)


def _head_gains(model: ModelTaps, norm: Any, heads: int) -> Tensor:
    """The gain of a query or key norm, (heads, d_h): its own for each head, or one for all."""
    if norm is None:
        return torch.ones(heads, model.head_dim)
    gain = model.gain(norm).cpu().reshape(-1, model.head_dim)
    return gain.expand(heads, model.head_dim)


def _piece(name: str, values: Tensor, dims: str, half: bool, meaning: str) -> Piece:
    array = values.contiguous().numpy()
    exact = half and bool(torch.equal(values.to(torch.bfloat16).float(), values))
    return Piece(name, array, tuple(dims.split()), exact, meaning)


def _f32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
