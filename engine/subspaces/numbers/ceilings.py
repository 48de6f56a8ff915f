"""Ceilings: the only candidates that look at the weight change. A true one cannot be exceeded at its rank."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.subspaces.numbers.linear import pca
from engine.subspaces.numbers.registry import candidate
from engine.subspaces.numbers.workspace import Workspace, checked

Array = NDArray[np.float64]


ceiling = partial(candidate, family="ceilings", axis_kind="ceiling", nested=True)
delta_ceiling = partial(ceiling, source="weight change", needs=("delta",))


@ceiling(
    name="TaskDiff_lora_ceiling",
    source="steering label, fit prompts",
    needs=("label_fit",),
    definition="PCA of D on fit prompts; no true ceiling: centred, other prompts, long rows count more",
)
def task_diff_lora_ceiling(inputs: Workspace, layer: int, k: int) -> Array:
    return pca(checked(inputs.target.label_fit(layer), f"label_fit of layer {layer}"), k)


@ceiling(
    name="act_ceiling",
    source="steering label, eval prompts",
    needs=("label",),
    definition="leading eigenvectors of the second moment of D's unit rows, eval prompts: the largest R_act",
)
def act_ceiling(inputs: Workspace, layer: int, k: int) -> Array:
    return inputs.moment("act", layer).vectors[:, :k]


@delta_ceiling(
    name="dW_left_basis_ceiling",
    definition="leading left singular vectors of [ΔW_o | ΔW_down]; the larger tensor counts more",
)
def delta_left_basis_ceiling(inputs: Workspace, layer: int, k: int) -> Array:
    return inputs.moment("concatenated", layer).vectors[:, :k]


@delta_ceiling(name="dW_o_proj_ceiling", definition="leading left singular vectors of ΔW_o: its largest R_w")
def delta_o_proj_ceiling(inputs: Workspace, layer: int, k: int) -> Array:
    return inputs.moment("o_proj", layer).vectors[:, :k]


@delta_ceiling(
    name="dW_down_proj_ceiling", definition="leading left singular vectors of ΔW_down: its largest R_w"
)
def delta_down_proj_ceiling(inputs: Workspace, layer: int, k: int) -> Array:
    return inputs.moment("down_proj", layer).vectors[:, :k]


@delta_ceiling(
    name="dW_combined_ceiling",
    definition="leading left singular vectors of both at unit norm, side by side: the largest combined R_w",
)
def delta_combined_ceiling(inputs: Workspace, layer: int, k: int) -> Array:
    return inputs.moment("combined", layer).vectors[:, :k]
