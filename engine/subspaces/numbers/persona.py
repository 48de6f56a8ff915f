"""Candidates from a contrast of two personas on the same fit prompts, and joins of candidates."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from engine.subspaces.numbers.circuits import qk_circuit_basis
from engine.subspaces.numbers.linear import RANK_TOLERANCE, orthonormal, pca, principal_vectors, signed, union
from engine.subspaces.numbers.registry import candidate
from engine.subspaces.numbers.weights import ALL_READS, write_not_downstream
from engine.subspaces.numbers.workspace import WRITES, Workspace

Array = NDArray[np.float64]

PERSONAS = ("positive", "negative")
TOKENS = ("positive_tokens", "negative_tokens", "positive_attention", "negative_attention")
ROTATION_RANK = 32
STRICT_COSINE = 1 - 1e-6


def contrast(inputs: Workspace, layer: int, of: str = "{}") -> Float[np.ndarray, "n d"]:
    """Positive minus negative persona, prompt by prompt; `of` names the activation, e.g. "{}_mlp_input"."""
    return inputs.get(of.format("positive"), layer) - inputs.get(of.format("negative"), layer)


def contrast_basis(inputs: Workspace, layer: int, k: int) -> Array:
    """Principal directions of the persona contrast."""
    return inputs.leading("contrast", layer, k, lambda wide: pca(contrast(inputs, layer), wide), keep=True)


def padded_left(values: Float[np.ndarray, "n t *f"], length: int) -> Array:
    """Right-aligned tokens with zeros put in front up to a length."""
    lead = length - values.shape[1]
    return np.pad(values, [(0, 0), (lead, 0)] + [(0, 0)] * (values.ndim - 2))


def token_contrast(inputs: Workspace, layer: int) -> tuple[Array, Array, Array]:
    """Differences (m, d) at right-aligned tokens where either persona has one, and both attentions (m,)."""

    def together() -> Array:
        tokens = [inputs.get(f"{persona}_tokens", layer) for persona in PERSONAS]
        length = max(values.shape[1] for values in tokens)
        first, second = (padded_left(values, length) for values in tokens)
        there = (first != 0).any(axis=2) | (second != 0).any(axis=2)
        attention = [inputs.get(f"{persona}_attention", layer) for persona in PERSONAS]
        columns = [padded_left(values, length)[there][:, None] for values in attention]
        return np.concatenate([first[there] - second[there], *columns], axis=1)

    found = inputs.once("token_contrast", layer, together)
    return found[:, :-2], found[:, -2], found[:, -1]


def clusters(samples: Float[np.ndarray, "m d"], k: int) -> Array:
    """PCA of the centres of k + 1 clusters, so that k directions are possible.

    k-means runs on the rows' coordinates in their own span, which leaves all distances as they are.
    """
    count = min(k + 1, len(np.unique(samples, axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, random_state=0).fit(samples)
    return pca(found.cluster_centers_ - samples.mean(axis=0), k)


def chars_basis(inputs: Workspace, layer: int, k: int) -> Array:
    """Directions between cluster centres of clean and persona activations, see `clusters`."""

    def span() -> Array:
        rows = np.concatenate([inputs.get(name, layer) for name in ("clean", *PERSONAS)])
        u, sigma, vt = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        return np.concatenate([u * sigma, vt.T])

    def build() -> Array:
        both = inputs.once("chars_span", layer, span, keep=True)
        coordinates, directions = both[: -inputs.d], both[-inputs.d :]
        return directions @ clusters(coordinates, k)

    return inputs.once(f"chars_clusters/{k}", layer, build)


def rotation_planes(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], k: int) -> Array:
    """Planes that the Procrustes rotation x → y turns most: singular vectors of R − Rᵀ.

    R = U_r V_rᵀ within the leading principal directions of both, r the rank of their cross-covariance (beyond
    it a rotation is not determined). Singular values of a skew matrix come in equal pairs, one plane each,
    so an odd k takes k − 1 directions.
    """
    joint = pca(np.concatenate([x, y]), min(ROTATION_RANK, len(x) + len(y) - 2, x.shape[1]))
    cross = ((x - x.mean(axis=0)) @ joint).T @ ((y - y.mean(axis=0)) @ joint)
    u, sigma, vt = np.linalg.svd(cross)
    r = int((sigma > RANK_TOLERANCE * np.linalg.norm(sigma)).sum())
    turn = u[:, :r] @ vt[:r]
    planes, sizes, _ = np.linalg.svd(turn - turn.T)
    width = min(k, int((sizes > RANK_TOLERANCE * max(r, 1)).sum()))
    return signed(joint @ planes[:, : width - width % 2])


of_persona = partial(candidate, axis_kind="mixed", source="persona activations", nested=True)
attention_selected = partial(of_persona, family="attention-selected", needs=TOKENS)
mlp_contrast = partial(of_persona, family="MLP contrast")
compound = partial(candidate, family="compounds", axis_kind="mixed", source="weights and activations")


@of_persona(
    name="TaskDiff_contrast",
    family="persona contrast",
    needs=PERSONAS,
    definition="PCA of persona+ minus persona− stream",
)
def task_diff_contrast(inputs: Workspace, layer: int, k: int) -> Array:
    return contrast_basis(inputs, layer, k)


@attention_selected(
    name="attn_min_taskdiff",
    definition="PCA of the token-wise persona contrast times √min(a+, a−), a the last token's mean attention",
)
def attn_min_taskdiff(inputs: Workspace, layer: int, k: int) -> Array:
    rows, first, second = token_contrast(inputs, layer)
    return pca(rows, k, np.minimum(first, second))


@attention_selected(
    name="attn_max_taskdiff", definition="PCA of the token-wise persona contrast times √max(a+, a−)"
)
def attn_max_taskdiff(inputs: Workspace, layer: int, k: int) -> Array:
    rows, first, second = token_contrast(inputs, layer)
    return pca(rows, k, np.maximum(first, second))


@attention_selected(
    name="attn_diff_taskdiff", definition="PCA of the token-wise persona contrast times √|a+ − a−|"
)
def attn_diff_taskdiff(inputs: Workspace, layer: int, k: int) -> Array:
    rows, first, second = token_contrast(inputs, layer)
    return pca(rows, k, np.abs(first - second))


@attention_selected(
    name="attn_min_x_diffnorm_taskdiff",
    definition="PCA of the token-wise persona contrast times √(min(a+, a−) · its own length)",
)
def attn_min_x_diffnorm_taskdiff(inputs: Workspace, layer: int, k: int) -> Array:
    rows, first, second = token_contrast(inputs, layer)
    return pca(rows, k, np.minimum(first, second) * np.linalg.norm(rows, axis=1))


@mlp_contrast(
    name="up_proj_input_contrast",
    needs=("positive_mlp_input", "negative_mlp_input"),
    definition="PCA of the persona contrast of what up_proj receives",
)
def up_proj_input_contrast(inputs: Workspace, layer: int, k: int) -> Array:
    return pca(contrast(inputs, layer, "{}_mlp_input"), k)


@mlp_contrast(
    name="up_proj_output_written_contrast",
    source="weights and persona activations",
    needs=("positive_mlp_input", "negative_mlp_input", "up_proj", "down_proj"),
    definition="PCA of the persona contrast after W_up, mapped back by W_down",
)
def up_proj_output_written_contrast(inputs: Workspace, layer: int, k: int) -> Array:
    up = contrast(inputs, layer, "{}_mlp_input") @ inputs.get("up_proj", layer).T
    return pca(up @ inputs.get("down_proj", layer).T, k)


@candidate(
    name="chars_clusters",
    family="clusters",
    axis_kind="mixed",
    source="clean and persona activations",
    needs=("clean", *PERSONAS),
    definition="PCA of the centres of k + 1 k-means clusters of clean and persona activations",
)
def chars_clusters(inputs: Workspace, layer: int, k: int) -> Array:
    return chars_basis(inputs, layer, k)


@candidate(
    name="rotation_contrast",
    family="rotation",
    axis_kind="mixed",
    source="persona activations",
    needs=PERSONAS,
    definition="planes that the Procrustes rotation persona− → persona+ turns most (its skew part)",
)
def rotation_contrast(inputs: Workspace, layer: int, k: int) -> Array:
    wide = inputs.leading(
        "rotation",
        layer,
        k,
        lambda wide: rotation_planes(inputs.get("negative", layer), inputs.get("positive", layer), wide),
        keep=True,
    )
    return wide[:, : wide.shape[1] - wide.shape[1] % 2]


def qk_chars_vectors(inputs: Workspace, layer: int, k: int) -> tuple[Array, Array, Array]:
    """Principal vectors of qk_circuit and of chars_clusters, and their cosines."""
    return principal_vectors(qk_circuit_basis(inputs, layer, k), chars_basis(inputs, layer, k))


def qk_chars_cosines(inputs: Workspace, layer: int, k: int) -> Array:
    """Principal cosines between qk_circuit and chars_clusters, descending."""
    return qk_chars_vectors(inputs, layer, k)[2]


@compound(
    name="qk_x_chars_clusters",
    needs=("q_proj", "k_proj", "clean", *PERSONAS),
    definition="half way between the principal vectors of qk_circuit and chars_clusters; no intersection",
    detail=qk_chars_cosines,
)
def qk_x_chars_clusters(inputs: Workspace, layer: int, k: int) -> Array:
    first, second, _ = qk_chars_vectors(inputs, layer, k)
    return orthonormal(first + second)


@compound(
    name="qk_and_chars_clusters",
    needs=("q_proj", "k_proj", "clean", *PERSONAS),
    definition="directions in qk_circuit and in chars_clusters (cosine above 1 − 1e-6); mostly none",
    detail=qk_chars_cosines,
)
def qk_and_chars_clusters(inputs: Workspace, layer: int, k: int) -> Array:
    first, second, cosines = qk_chars_vectors(inputs, layer, k)
    return orthonormal((first + second)[:, cosines > STRICT_COSINE])


@compound(
    name="WNR_union_TaskDiff",
    needs=(*WRITES, *ALL_READS, *PERSONAS),
    definition="span of write_not_downstream_read and TaskDiff_contrast, of rank up to 2k",
    expands=True,
)
def wnr_union_task_diff(inputs: Workspace, layer: int, k: int) -> Array:
    return union(write_not_downstream(inputs, layer, k), contrast_basis(inputs, layer, k))
