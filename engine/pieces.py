"""Parts of a model's weights that analyses need later, when no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.analysis.subspace import head_kernel_svd
from engine.sites import ModelTaps

__all__ = ["PIECES", "Piece", "model_pieces"]

PIECES = (
    "w_q",
    "w_k",
    "kernel_right",
    "kernel_sigma",
    "attn_norm_gain",
    "mlp_norm_gain",
    "final_norm_gain",
    "unembedding",
)
"""Names of what `model_pieces` gives, in its order."""


@dataclass(frozen=True)
class Piece:
    """One named array of weights.

    Attributes:
        name: under the model's weights in the store.
        values: float32, or float32 that is exactly bfloat16 where `bfloat16` is set.
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
    """Query and key projections per head, head-kernel singular vectors, norms, unembedding.

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
    gains = torch.stack([model.gain(layer.mlp_norm).cpu() for layer in layers])
    yield _piece("mlp_norm_gain", gains, "layer feature", half, "gain of the norm before the MLP")
    yield _piece("final_norm_gain", model.gain(model.final_norm).cpu(), "feature", half, "final norm's gain")
    unembedding: Any = model.unembedding
    weight = unembedding.weight.detach().float().cpu()
    yield _piece("unembedding", weight, "token feature", half, "unembedding, one row a token")


def _piece(name: str, values: Tensor, dims: str, half: bool, meaning: str) -> Piece:
    array = values.contiguous().numpy()
    exact = half and bool(torch.equal(values.to(torch.bfloat16).float(), values))
    return Piece(name, array, tuple(dims.split()), exact, meaning)


def _f32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
