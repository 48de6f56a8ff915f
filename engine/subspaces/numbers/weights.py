"""Candidates from single weights: the unembedding, what blocks read, what they write and don't read."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from engine.subspaces.numbers.linear import gram_outside, project_away, signed, top_of_gram, union
from engine.subspaces.numbers.registry import candidate
from engine.subspaces.numbers.workspace import READS, WRITES, Workspace

Array = NDArray[np.float64]
ISOLATED_FROM = 8
"""Directions of what a block reads that `causally_isolated` leaves out of each kind."""

ALL_READS = (*READS, "unembedding")


def unembedding_read(inputs: Workspace, k: int) -> Array:
    """Leading right singular vectors of the unembedding."""
    return inputs.leading(
        "lm_head_read", 0, k, lambda wide: top_of_gram(inputs.unembedding_gram(), wide), True
    )


def global_read_basis(inputs: Workspace, k: int) -> Array:
    """Leading eigenvectors of all reads' Gram matrix."""
    return inputs.leading(
        "global_read", 0, k, lambda wide: top_of_gram(inputs.global_read_gram(), wide), True
    )


def input_super_basis(inputs: Workspace, layer: int, k: int) -> Array:
    """Leading right singular vectors of everything that a block reads with."""
    return inputs.leading(
        "input_super", layer, k, lambda wide: top_of_gram(inputs.input_gram(layer), wide), True
    )


def kv_super_basis(inputs: Workspace, layer: int, k: int) -> Array:
    """Leading right singular vectors of [W_k; W_v]."""
    return inputs.leading(
        "kv_super", layer, k, lambda wide: top_of_gram(inputs.reads_gram(("k_proj", "v_proj"), layer), wide)
    )


def write_outside(inputs: Workspace, layer: int, forbidden: Array, k: int) -> Array:
    """Leading left singular vectors of (I − QQᵀ)[W_o | W_down]."""
    gram = inputs.writes_gram(layer)
    return top_of_gram(gram_outside(gram, forbidden), k, float(np.trace(gram)))


def write_not_downstream(inputs: Workspace, layer: int, k: int) -> Array:
    """What a block writes away from the broad reads of all later blocks and the unembedding."""

    def build(wide: int) -> Array:
        read = top_of_gram(inputs.downstream_read_gram(layer), inputs.broad)
        return write_outside(inputs, layer, read, wide)

    return inputs.leading(f"write_not_downstream_read/{inputs.broad}", layer, k, build, True)


unembedding = partial(
    candidate,
    family="unembedding",
    axis_kind="read",
    source="weights",
    needs=("unembedding",),
    nested=True,
    shared=True,
)
read = partial(candidate, family="reads", axis_kind="read", source="weights", nested=True)
written = partial(candidate, family="writes", axis_kind="write", source="weights", nested=True)
not_read = partial(written, family="write, not read")


@unembedding(name="lm_head_read", definition="leading right singular vectors of the unembedding")
def lm_head_read(inputs: Workspace, layer: int, k: int) -> Array:
    return unembedding_read(inputs, k)


@unembedding(name="logits_null", definition="last right singular vectors of the unembedding, weakest first")
def logits_null(inputs: Workspace, layer: int, k: int) -> Array:
    gram = inputs.unembedding_gram()
    if not gram.any():
        return np.zeros((inputs.d, 0))
    return signed(linalg.eigh(gram, subset_by_index=(0, min(k, inputs.d) - 1))[1])


@read(
    name="global_read",
    needs=ALL_READS,
    definition="leading right singular vectors of all blocks' q, k, v, up, gate and the unembedding",
    shared=True,
)
def global_read(inputs: Workspace, layer: int, k: int) -> Array:
    return global_read_basis(inputs, k)


@read(name="mlp_up_read", needs=("up_proj",), definition="leading right singular vectors of W_up")
def mlp_up_read(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.read_gram("up_proj", layer), k)


@read(name="mlp_gate_read", needs=("gate_proj",), definition="leading right singular vectors of W_gate")
def mlp_gate_read(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.read_gram("gate_proj", layer), k)


@read(
    name="attn_qkv_read",
    needs=("q_proj", "k_proj", "v_proj"),
    definition="leading right singular vectors of [W_q; W_k; W_v]",
)
def attn_qkv_read(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.reads_gram(("q_proj", "k_proj", "v_proj"), layer), k)


@read(
    name="input_super",
    needs=READS,
    definition="leading right singular vectors of [W_q; W_k; W_v; W_up; W_gate]",
)
def input_super(inputs: Workspace, layer: int, k: int) -> Array:
    return input_super_basis(inputs, layer, k)


@read(name="kv_super", needs=("k_proj", "v_proj"), definition="leading right singular vectors of [W_k; W_v]")
def kv_super(inputs: Workspace, layer: int, k: int) -> Array:
    return kv_super_basis(inputs, layer, k)


@read(
    name="input_super_not_lm_read",
    needs=ALL_READS,
    definition="input_super with the broad lm_head_read projected out",
    nested=False,
)
def input_super_not_lm_read(inputs: Workspace, layer: int, k: int) -> Array:
    return project_away(input_super_basis(inputs, layer, k), unembedding_read(inputs, inputs.broad))


@written(
    name="global_write",
    needs=WRITES,
    definition="leading left singular vectors of all blocks' W_o and W_down side by side",
    shared=True,
)
def global_write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.global_write_gram(), k)


@written(name="write", needs=WRITES, definition="leading left singular vectors of [W_o | W_down]")
def write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.writes_gram(layer), k)


@written(name="attn_write", needs=("o_proj",), definition="leading left singular vectors of W_o")
def attn_write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.write_gram("o_proj", layer), k)


@written(name="mlp_write", needs=("down_proj",), definition="leading left singular vectors of W_down")
def mlp_write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.write_gram("down_proj", layer), k)


@not_read(
    name="global_write_not_global_read",
    needs=(*WRITES, *ALL_READS),
    definition="global_write with the broad global_read projected out of the weights first",
    shared=True,
)
def global_write_not_global_read(inputs: Workspace, layer: int, k: int) -> Array:
    gram, read = inputs.global_write_gram(), global_read_basis(inputs, inputs.broad)
    return top_of_gram(gram_outside(gram, read), k, float(np.trace(gram)))


@not_read(
    name="write_not_lm_head_read",
    needs=(*WRITES, "unembedding"),
    definition="write with the broad lm_head_read projected out of the weights first",
)
def write_not_lm_head_read(inputs: Workspace, layer: int, k: int) -> Array:
    return write_outside(inputs, layer, unembedding_read(inputs, inputs.broad), k)


@not_read(
    name="write_not_global_read",
    needs=(*WRITES, *ALL_READS),
    definition="write with the broad global_read projected out of the weights first",
)
def write_not_global_read(inputs: Workspace, layer: int, k: int) -> Array:
    return write_outside(inputs, layer, global_read_basis(inputs, inputs.broad), k)


@not_read(
    name="write_not_downstream_read",
    needs=(*WRITES, *ALL_READS),
    definition="write with the broad reads of all later blocks and the unembedding projected out first",
)
def write_not_downstream_read(inputs: Workspace, layer: int, k: int) -> Array:
    return write_not_downstream(inputs, layer, k)


@not_read(
    name="causally_isolated",
    needs=(*WRITES, *ALL_READS),
    definition="write with 8 input_super, 8 kv_super and the broad lm_head_read directions taken out first",
)
def causally_isolated(inputs: Workspace, layer: int, k: int) -> Array:
    read = union(
        input_super_basis(inputs, layer, ISOLATED_FROM),
        kv_super_basis(inputs, layer, ISOLATED_FROM),
        unembedding_read(inputs, inputs.broad),
    )
    return write_outside(inputs, layer, read, k)
