"""Candidates from single weights: the unembedding, what blocks read, what they write and don't read."""

from __future__ import annotations

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


@candidate(
    name="lm_head_read",
    family="unembedding",
    axis_kind="read",
    source="weights",
    needs=("unembedding",),
    definition="leading right singular vectors of the unembedding",
    nested=True,
    shared=True,
)
def lm_head_read(inputs: Workspace, layer: int, k: int) -> Array:
    return unembedding_read(inputs, k)


@candidate(
    name="logits_null",
    family="unembedding",
    axis_kind="read",
    source="weights",
    needs=("unembedding",),
    definition="last right singular vectors of the unembedding, weakest first",
    nested=True,
    shared=True,
)
def logits_null(inputs: Workspace, layer: int, k: int) -> Array:
    gram = inputs.unembedding_gram()
    if not gram.any():
        return np.zeros((inputs.d, 0))
    return signed(linalg.eigh(gram, subset_by_index=(0, min(k, inputs.d) - 1))[1])


@candidate(
    name="global_read",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=ALL_READS,
    definition="leading right singular vectors of all blocks' q, k, v, up, gate and the unembedding",
    nested=True,
    shared=True,
)
def global_read(inputs: Workspace, layer: int, k: int) -> Array:
    return global_read_basis(inputs, k)


@candidate(
    name="mlp_up_read",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=("up_proj",),
    definition="leading right singular vectors of W_up",
    nested=True,
)
def mlp_up_read(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.read_gram("up_proj", layer), k)


@candidate(
    name="mlp_gate_read",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=("gate_proj",),
    definition="leading right singular vectors of W_gate",
    nested=True,
)
def mlp_gate_read(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.read_gram("gate_proj", layer), k)


@candidate(
    name="attn_qkv_read",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=("q_proj", "k_proj", "v_proj"),
    definition="leading right singular vectors of [W_q; W_k; W_v]",
    nested=True,
)
def attn_qkv_read(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.reads_gram(("q_proj", "k_proj", "v_proj"), layer), k)


@candidate(
    name="input_super",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=READS,
    definition="leading right singular vectors of [W_q; W_k; W_v; W_up; W_gate]",
    nested=True,
)
def input_super(inputs: Workspace, layer: int, k: int) -> Array:
    return input_super_basis(inputs, layer, k)


@candidate(
    name="kv_super",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=("k_proj", "v_proj"),
    definition="leading right singular vectors of [W_k; W_v]",
    nested=True,
)
def kv_super(inputs: Workspace, layer: int, k: int) -> Array:
    return kv_super_basis(inputs, layer, k)


@candidate(
    name="input_super_not_lm_read",
    family="reads",
    axis_kind="read",
    source="weights",
    needs=ALL_READS,
    definition="input_super with the broad lm_head_read projected out",
)
def input_super_not_lm_read(inputs: Workspace, layer: int, k: int) -> Array:
    return project_away(input_super_basis(inputs, layer, k), unembedding_read(inputs, inputs.broad))


@candidate(
    name="global_write",
    family="writes",
    axis_kind="write",
    source="weights",
    needs=WRITES,
    definition="leading left singular vectors of all blocks' W_o and W_down side by side",
    nested=True,
    shared=True,
)
def global_write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.global_write_gram(), k)


@candidate(
    name="write",
    family="writes",
    axis_kind="write",
    source="weights",
    needs=WRITES,
    definition="leading left singular vectors of [W_o | W_down]",
    nested=True,
)
def write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.writes_gram(layer), k)


@candidate(
    name="attn_write",
    family="writes",
    axis_kind="write",
    source="weights",
    needs=("o_proj",),
    definition="leading left singular vectors of W_o",
    nested=True,
)
def attn_write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.write_gram("o_proj", layer), k)


@candidate(
    name="mlp_write",
    family="writes",
    axis_kind="write",
    source="weights",
    needs=("down_proj",),
    definition="leading left singular vectors of W_down",
    nested=True,
)
def mlp_write(inputs: Workspace, layer: int, k: int) -> Array:
    return top_of_gram(inputs.write_gram("down_proj", layer), k)


@candidate(
    name="global_write_not_global_read",
    family="write, not read",
    axis_kind="write",
    source="weights",
    needs=(*WRITES, *ALL_READS),
    definition="global_write with the broad global_read projected out of the weights first",
    nested=True,
    shared=True,
)
def global_write_not_global_read(inputs: Workspace, layer: int, k: int) -> Array:
    gram, read = inputs.global_write_gram(), global_read_basis(inputs, inputs.broad)
    return top_of_gram(gram_outside(gram, read), k, float(np.trace(gram)))


@candidate(
    name="write_not_lm_head_read",
    family="write, not read",
    axis_kind="write",
    source="weights",
    needs=(*WRITES, "unembedding"),
    definition="write with the broad lm_head_read projected out of the weights first",
    nested=True,
)
def write_not_lm_head_read(inputs: Workspace, layer: int, k: int) -> Array:
    return write_outside(inputs, layer, unembedding_read(inputs, inputs.broad), k)


@candidate(
    name="write_not_global_read",
    family="write, not read",
    axis_kind="write",
    source="weights",
    needs=(*WRITES, *ALL_READS),
    definition="write with the broad global_read projected out of the weights first",
    nested=True,
)
def write_not_global_read(inputs: Workspace, layer: int, k: int) -> Array:
    return write_outside(inputs, layer, global_read_basis(inputs, inputs.broad), k)


@candidate(
    name="write_not_downstream_read",
    family="write, not read",
    axis_kind="write",
    source="weights",
    needs=(*WRITES, *ALL_READS),
    definition="write with the broad reads of all later blocks and the unembedding projected out first",
    nested=True,
)
def write_not_downstream_read(inputs: Workspace, layer: int, k: int) -> Array:
    return write_not_downstream(inputs, layer, k)


@candidate(
    name="causally_isolated",
    family="write, not read",
    axis_kind="write",
    source="weights",
    needs=(*WRITES, *ALL_READS),
    definition="write with 8 input_super, 8 kv_super and the broad lm_head_read directions taken out first",
    nested=True,
)
def causally_isolated(inputs: Workspace, layer: int, k: int) -> Array:
    read = union(
        input_super_basis(inputs, layer, ISOLATED_FROM),
        kv_super_basis(inputs, layer, ISOLATED_FROM),
        unembedding_read(inputs, inputs.broad),
    )
    return write_outside(inputs, layer, read, k)
