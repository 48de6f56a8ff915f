"""Candidates from clean activations: the stream leaving each block on fit prompts, no persona."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.subspaces.numbers.linear import pca
from engine.subspaces.numbers.registry import candidate
from engine.subspaces.numbers.workspace import Workspace

Array = NDArray[np.float64]


def magnitudes(inputs: Workspace) -> Float[np.ndarray, "layers n d"]:
    """|h| of fit prompts, layer by layer."""
    return np.abs([inputs.get("clean", layer) for layer in range(inputs.n_layers)])


def all_layers(inputs: Workspace, *names: str) -> Float[np.ndarray, "rows d"]:
    """Rows of all layers of the named activations, one below the other."""
    return np.concatenate([inputs.get(name, layer) for name in names for layer in range(inputs.n_layers)])


def clean_basis(inputs: Workspace, layer: int, k: int) -> Array:
    """Principal directions of a layer's clean stream; specificity takes them out."""
    return inputs.leading(
        "clean_pca", layer, k, lambda wide: pca(inputs.get("clean", layer), wide), keep=True
    )


of_clean = partial(
    candidate,
    family="clean activations",
    axis_kind="mixed",
    source="clean activations",
    needs=("clean",),
    nested=True,
)
baseline = partial(of_clean, family="baselines")


@of_clean(
    name="suppressed",
    definition="PCA of min(summed rises, summed falls) of |h| from layer to layer, per prompt and dimension",
    shared=True,
)
def suppressed(inputs: Workspace, layer: int, k: int) -> Array:
    change = np.diff(magnitudes(inputs), axis=0)
    return pca(np.minimum(np.maximum(change, 0).sum(axis=0), np.maximum(-change, 0).sum(axis=0)), k)


@of_clean(
    name="amplified",
    definition="PCA of the rise of |h| from the first to the last layer, falls counted as 0",
    shared=True,
)
def amplified(inputs: Workspace, layer: int, k: int) -> Array:
    first, last = inputs.get("clean", 0), inputs.get("clean", inputs.n_layers - 1)
    return pca(np.maximum(np.abs(last) - np.abs(first), 0), k)


@of_clean(name="added_features", definition="PCA of the summed rises of |h| from layer to layer", shared=True)
def added_features(inputs: Workspace, layer: int, k: int) -> Array:
    return pca(np.maximum(np.diff(magnitudes(inputs), axis=0), 0).sum(axis=0), k)


@of_clean(name="churn", definition="PCA of h of the next layer minus h of this one; rank 0 at the last layer")
def churn(inputs: Workspace, layer: int, k: int) -> Array:
    after = inputs.get("clean", min(layer + 1, inputs.n_layers - 1))
    return pca(after - inputs.get("clean", layer), k)


@baseline(
    name="global_clean_resid_pca", definition="PCA of the clean stream at all layers together", shared=True
)
def global_clean_resid_pca(inputs: Workspace, layer: int, k: int) -> Array:
    return pca(all_layers(inputs, "clean"), k)


@candidate(
    name="global_persona_resid_pca",
    family="baselines",
    axis_kind="mixed",
    source="persona activations",
    needs=("positive", "negative"),
    definition="PCA of the stream under both personas at all layers together, not differenced",
    nested=True,
    shared=True,
)
def global_persona_resid_pca(inputs: Workspace, layer: int, k: int) -> Array:
    return pca(all_layers(inputs, "positive", "negative"), k)


@baseline(name="layer_clean_resid_pca", definition="PCA of the clean stream of the layer")
def layer_clean_resid_pca(inputs: Workspace, layer: int, k: int) -> Array:
    return clean_basis(inputs, layer, k)


@candidate(
    name="gate_active_written",
    family="clean activations",
    axis_kind="mixed",
    source="weights and clean activations",
    needs=("clean_mlp_input", "gate_proj", "up_proj", "down_proj"),
    definition="PCA of what the clean MLP writes, W_down (act(W_gate x) · W_up x)",
    nested=True,
)
def gate_active_written(inputs: Workspace, layer: int, k: int) -> Array:
    x = inputs.get("clean_mlp_input", layer)
    gate = inputs.raw.activation(x @ inputs.get("gate_proj", layer).T)
    return pca((gate * (x @ inputs.get("up_proj", layer).T)) @ inputs.get("down_proj", layer).T, k)
