"""What a sweep over subspaces is made from: weights, activations, and the change they are held against.

Every item is a function of the layer, so that a store can hand out one layer at a time; `per_layer` makes one
from arrays. Rows are prompts, the last axis is the feature, weights are (out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import AnalysisError

Array = NDArray[np.float64]
Item = Callable[[int], ArrayLike]

TENSORS = ("o_proj", "down_proj")
OF_TARGET = ("label", "label_fit", "delta")
"""What candidates other than ceilings may not need."""


def per_layer(arrays: Sequence[ArrayLike]) -> Item:
    """An item from one array for each layer."""
    return lambda layer: arrays[layer]


def silu(x: Array) -> Array:
    """x · sigmoid(x), without overflow."""
    with np.errstate(over="ignore"):
        return x / (1.0 + np.exp(-x))


@dataclass(frozen=True)
class Delta:
    """A weight change that writes into the stream, dense or as two factors.

    Attributes:
        left: ΔW (d, m), or its left factor (d, r). right: (r, m), or None when `left` is ΔW itself.
    """

    left: ArrayLike
    right: ArrayLike | None = None

    def columns(self) -> Array:
        """A matrix (d, ·) with ΔW's left singular vectors and values; factors are never multiplied out."""
        left = np.asarray(self.left, dtype=np.float64)
        if self.right is None:
            return left
        return left @ np.linalg.qr(np.asarray(self.right, dtype=np.float64).T)[1].T


@dataclass(frozen=True)
class Target:
    """A weight change and what it does to the stream: all that candidates are scored against.

    Attributes:
        label: D of eval prompts, resid(α=+1) − resid(α=−1) at the decision token, leaving the layer (n, d).
        label_fit: the same of fit prompts.
        delta: layer -> {"o_proj": Delta, "down_proj": Delta}; tensors that are not changed may be missing.
        name: for tables of several changes.
    """

    label: Item
    label_fit: Item
    delta: Callable[[int], Mapping[str, Delta]]
    name: str = "delta"


def _hidden(layer: int) -> Any:
    raise AnalysisError(
        "The weight change is not for this candidate to see.",
        expected='axis_kind "ceiling", which are ranked apart',
        given="another kind",
    )


HIDDEN = Target(_hidden, _hidden, _hidden, "hidden")
"""What candidates other than ceilings are given for the weight change."""


@dataclass(frozen=True)
class Inputs:
    """A model and its activations on fit prompts.

    What is None is not there: candidates that need it are left out, with the reason.

    Attributes:
        n_layers, d, n_heads, n_kv_heads: the model.
        target: the change to hold candidates against.
        q_proj, k_proj, v_proj: (heads · d_h, d). o_proj: (d, n_heads · d_h). up_proj, gate_proj: (d_ff, d).
            down_proj: (d, d_ff).
        unembedding: (V, d), the layer is ignored.
        attn_norm, mlp_norm: gains (d,) in front of attention and MLP, folded into what reads the stream;
            final_norm: folded into the unembedding. None: weights as they are.
        q_norm, k_norm: gains (d_h,) of the query and key norms.
        start_embedding: (d,), embedding of BOS, or of EOS where there is none.
        clean, positive, negative: stream leaving the layer (n, d), under no persona and under the two, row i
            of both personas being the same prompt.
        clean_mlp_input, positive_mlp_input, negative_mlp_input: what up_proj receives, after its norm (n, d).
        positive_tokens, negative_tokens: stream leaving the layer at all tokens, (n, t, d), right-aligned,
            zeros where there is no token; the two lengths may differ.
        positive_attention, negative_attention: the last token's attention to them, mean over heads (n, t).
        activation: of the MLP's gate.
    """

    n_layers: int
    d: int
    n_heads: int
    n_kv_heads: int
    target: Target
    q_proj: Item | None = None
    k_proj: Item | None = None
    v_proj: Item | None = None
    o_proj: Item | None = None
    up_proj: Item | None = None
    gate_proj: Item | None = None
    down_proj: Item | None = None
    unembedding: Item | None = None
    attn_norm: Item | None = None
    mlp_norm: Item | None = None
    final_norm: Item | None = None
    q_norm: Item | None = None
    k_norm: Item | None = None
    start_embedding: Item | None = None
    clean: Item | None = None
    positive: Item | None = None
    negative: Item | None = None
    clean_mlp_input: Item | None = None
    positive_mlp_input: Item | None = None
    negative_mlp_input: Item | None = None
    positive_tokens: Item | None = None
    negative_tokens: Item | None = None
    positive_attention: Item | None = None
    negative_attention: Item | None = None
    activation: Callable[[Array], Array] = silu

    def missing(self, needs: Sequence[str]) -> list[str]:
        """Those of the named items that are not there (or that no inputs can have)."""
        holder: Any = self
        return [name for name in needs if name not in OF_TARGET and getattr(holder, name, None) is None]
