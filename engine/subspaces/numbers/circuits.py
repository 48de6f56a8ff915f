"""Candidates from products of weights. Query heads that share a key/value head are summed first."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.subspaces.numbers.linear import left_basis, left_of_product, pca
from engine.subspaces.numbers.registry import candidate
from engine.subspaces.numbers.workspace import Workspace

Array = NDArray[np.float64]


def grouped_rows(weight: Float[np.ndarray, "rows d"], n_heads: int, n_kv_heads: int) -> Array:
    """Rows of query heads summed over the heads that share a key head, (n_kv_heads · d_h, d)."""
    return (
        weight.reshape(n_kv_heads, n_heads // n_kv_heads, -1, weight.shape[1])
        .sum(axis=1)
        .reshape(-1, weight.shape[1])
    )


def reading_product(
    inputs: Workspace, left: Float[np.ndarray, "d m"], name: str, layer: int, k: int
) -> Array:
    """Leading left singular vectors of a matrix times a reading weight."""
    return left_of_product(left, inputs.unscaled(name, layer), k, inputs.stream_gain(name, layer))


def repeated_rows(weight: Float[np.ndarray, "rows d"], n_heads: int, n_kv_heads: int) -> Array:
    """Rows of query heads summed as if each row of a key head, not each key head, were repeated: row j of all
    query heads then meets row ⌊j·g/h⌋ of all key heads, (n_kv_heads · d_h, d)."""
    each = n_heads // n_kv_heads
    return weight.reshape(-1, each, weight.shape[1]).sum(axis=1)


def qk_circuit_basis(inputs: Workspace, layer: int, k: int) -> Array:
    """Query side of Σ_i W_q,iᵀ W_k,g(i)."""

    def build(wide: int) -> Array:
        queries = grouped_rows(inputs.read_weight("q_proj", layer), inputs.n_heads, inputs.n_kv_heads)
        return reading_product(inputs, queries.T, "k_proj", layer, wide)

    return inputs.leading("qk_circuit", layer, k, build, keep=True)


written = partial(candidate, family="circuits", axis_kind="write", source="weights", nested=True)
attention_kernel = partial(
    candidate, family="circuits", axis_kind="mixed", source="weights", needs=("q_proj", "k_proj"), nested=True
)


@written(
    name="attn_ov_write",
    needs=("o_proj", "v_proj"),
    definition="leading left singular vectors of W_o W_v, value heads expanded to query heads",
)
def attn_ov_write(inputs: Workspace, layer: int, k: int) -> Array:
    out = grouped_rows(inputs.get("o_proj", layer).T, inputs.n_heads, inputs.n_kv_heads)
    return reading_product(inputs, out.T, "v_proj", layer, k)


@written(
    name="attn_ov_write_rows",
    needs=("o_proj", "v_proj"),
    definition="attn_ov_write with rows of values repeated instead of heads, as some code does",
)
def attn_ov_write_rows(inputs: Workspace, layer: int, k: int) -> Array:
    out = repeated_rows(inputs.get("o_proj", layer).T, inputs.n_heads, inputs.n_kv_heads)
    return reading_product(inputs, out.T, "v_proj", layer, k)


@written(
    name="attention_sink",
    needs=("o_proj", "v_proj", "start_embedding"),
    definition="PCA over heads of W_o,h W_v,h e, e the embedding of BOS (else EOS)",
)
def attention_sink(inputs: Workspace, layer: int, k: int) -> Array:
    values = inputs.read_weight("v_proj", layer) @ inputs.get("start_embedding", layer)
    per_head = np.repeat(values.reshape(inputs.n_kv_heads, -1), inputs.n_heads // inputs.n_kv_heads, axis=0)
    out = inputs.get("o_proj", layer).reshape(inputs.d, inputs.n_heads, -1)
    return pca(np.einsum("dhe,he->hd", out, per_head), k)


@written(
    name="mlp_roundtrip_write",
    needs=("down_proj", "up_proj"),
    definition="leading left singular vectors of W_down W_up",
)
def mlp_roundtrip_write(inputs: Workspace, layer: int, k: int) -> Array:
    return reading_product(inputs, inputs.get("down_proj", layer), "up_proj", layer, k)


@written(
    name="gate_kernel",
    source="weights and clean activations",
    needs=("down_proj", "up_proj", "gate_proj", "clean_mlp_input"),
    definition="leading left singular vectors of W_down diag(E act(W_gate x)) W_up, x the normed MLP input",
)
def gate_kernel(inputs: Workspace, layer: int, k: int) -> Array:
    gate = inputs.raw.activation(inputs.get("clean_mlp_input", layer) @ inputs.get("gate_proj", layer).T)
    gated = inputs.get("down_proj", layer) * gate.mean(axis=0)
    return reading_product(inputs, gated, "up_proj", layer, k)


@attention_kernel(
    name="qk_circuit",
    definition="leading left singular vectors of W_qᵀ W_k summed over heads, key heads expanded",
)
def qk_circuit(inputs: Workspace, layer: int, k: int) -> Array:
    return qk_circuit_basis(inputs, layer, k)


@attention_kernel(
    name="qk_circuit_rows",
    definition="qk_circuit with rows of keys repeated instead of heads, as some code does",
)
def qk_circuit_rows(inputs: Workspace, layer: int, k: int) -> Array:
    queries = repeated_rows(inputs.read_weight("q_proj", layer), inputs.n_heads, inputs.n_kv_heads)
    return reading_product(inputs, queries.T, "k_proj", layer, k)


@attention_kernel(
    name="qk_circuit_per_head",
    definition="leading left singular vectors of all heads' W_q,iᵀ W_k,g(i) side by side: none cancel",
)
def qk_circuit_per_head(inputs: Workspace, layer: int, k: int) -> Array:
    keys = inputs.read_weight("k_proj", layer).reshape(inputs.n_kv_heads, -1, inputs.d)
    factors = np.linalg.qr(keys.transpose(0, 2, 1))[1].transpose(0, 2, 1)
    queries = inputs.read_weight("q_proj", layer).reshape(inputs.n_heads, -1, inputs.d)
    of_query = np.arange(inputs.n_heads) // (inputs.n_heads // inputs.n_kv_heads)
    sides = queries.transpose(0, 2, 1) @ factors[of_query]
    return left_basis(sides.transpose(1, 0, 2).reshape(inputs.d, -1), k)
