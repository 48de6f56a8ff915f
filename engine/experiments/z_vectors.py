"""What Z-patching puts in: token states, the bases of Z, source vectors, and the edits made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import ot
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from engine.analysis.subspace import multi_head_basis, random_basis
from engine.decoding import Edit, Tokens
from engine.errors import PatchError
from engine.experiment import Lab
from engine.experiments.z_patching import Patch, Which, ZPatching
from engine.intervene import JobCancelled
from engine.model import LoadedModel
from engine.sites import Site, record

Array = NDArray[np.float64]
EXACT_CELLS = 512 * 512
"""Token pairs up to which transport is solved exactly; beyond it Sinkhorn is used."""
REGULARISATION = 0.01
"""Of Sinkhorn's entropy, in units of the largest cost."""
PCA_PROMPTS = 64


def token_states(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    component: str,
    layers: Sequence[int],
    should_stop: Callable[[], bool] | None = None,
) -> dict[int, list[Tensor]]:
    """Unpatched states of every token, by layer, one (T, d) float32 CPU tensor a prompt; no padding."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for ids in token_ids:
        if should_stop is not None and should_stop():
            raise JobCancelled("The run was cancelled.", next_step="submit it again to run it.")
        with (
            lm.lock,
            torch.inference_mode(),
            record(lm.taps, (component,), layers, lambda states: states[0].float().cpu()) as seen,
        ):
            lm.taps.decoder(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False)
        for layer in layers:
            found[layer].append(seen[component, layer])
    return found


def transported(source: Float[np.ndarray, "s d"], own: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t d"]:
    """A mix of source tokens for each own token: z_t = Σ_s π_st h_s / b_t, b_t = 1/T.

    π solves optimal transport between the two prompts' tokens under squared Euclidean cost with uniform
    marginals: exactly (network simplex; Bonneel et al. 2011) up to `EXACT_CELLS` token pairs, with entropy
    beyond (Cuturi 2013).
    """
    states, targets = np.asarray(source, dtype=np.float64), np.asarray(own, dtype=np.float64)
    cost = ot.dist(states, targets, metric="sqeuclidean")
    a, b = np.full(len(states), 1 / len(states)), np.full(len(targets), 1 / len(targets))
    if cost.size <= EXACT_CELLS:
        plan = ot.emd(a, b, cost)
    else:
        scale = float(cost.max()) or 1.0
        plan = ot.sinkhorn(a, b, cost / scale, REGULARISATION, method="sinkhorn_log", warn=False)
    mixed: Array = (plan / plan.sum(axis=0)).T @ states
    return mixed


@dataclass(frozen=True)
class Bases:
    """Z and the random subspaces beside it, each (d, k) float32.

    Attributes:
        z: by (layer, k). random: by (layer, k, draw).
    """

    z: dict[tuple[int, int], Tensor]
    random: dict[tuple[int, int, int], Tensor]

    def of(self, patch: Patch) -> Tensor | None:
        """The basis of a condition; None where everything is patched."""
        if patch.k is None:
            return None
        if patch.draw is None:
            return self.z[patch.layer, patch.k]
        return self.random[patch.layer, patch.k, patch.draw]


def make_bases(experiment: ZPatching, lab: Lab, train_ids: Callable[[], list[list[int]]]) -> Bases:
    """Every basis that an experiment needs.

    Args:
        train_ids: token ids of the prompts that principal components are taken from; called for "pca" only.

    Raises:
        PatchError: k exceeds what the states span. AnalysisError: what the kernels span.
    """
    d, z = int(lab.sizes(experiment.model)["d"]), {}
    cells = [(layer, k) for layer in experiment.layers for k in experiment.ks]
    if experiment.ks[-1] >= d:
        raise PatchError(
            "Z has no complement.", expected=f"k below the width {d}", given=f"k = {experiment.ks[-1]}"
        )
    if experiment.basis in ("blocks", "kernels"):
        right, sigma = (
            lab.array(f"weights/{experiment.model}/{name}") for name in ("kernel_right", "kernel_sigma")
        )
        for layer, k in cells:
            z[layer, k] = multi_head_basis(right[layer], sigma[layer], k, experiment.basis)
    elif experiment.basis == "pca":
        states = token_states(
            lab.model(experiment.model), train_ids(), experiment.site, experiment.layers, lab.should_stop
        )
        for layer in experiment.layers:
            z |= {
                (layer, k): b for k, b in principal(torch.cat(states[layer]).numpy(), experiment.ks).items()
            }
    else:
        z = {(layer, k): random_basis(d, k, _seed(experiment, layer, k, -1)) for layer, k in cells}
    random = {
        (layer, k, draw): _tensor(random_basis(d, k, _seed(experiment, layer, k, draw)))
        for layer, k in cells
        for draw in range(experiment.draws)
    }
    return Bases({cell: _tensor(basis) for cell, basis in z.items()}, random)


def principal(states: Float[np.ndarray, "t d"], ks: Sequence[int]) -> dict[int, Array]:
    """Leading principal directions of centred token states, (d, k) for each k.

    Raises:
        PatchError: more directions than the states span.
    """
    centred = states.astype(np.float64) - states.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    rank = int((values > len(states) * np.finfo(np.float32).eps * values[-1]).sum())
    if max(ks) > rank:
        raise PatchError(
            "The token states span too few directions.",
            expected=f"k ≤ {rank}",
            given=f"k = {max(ks)} from {len(states)} tokens",
            next_step="choose a smaller k.",
        )
    return {k: vectors[:, : -k - 1 : -1] for k in ks}


def _seed(experiment: ZPatching, layer: int, k: int, draw: int) -> int:
    parts = [experiment.seed, layer, k, draw + 1]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _tensor(basis: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(basis, dtype=np.float32))


@dataclass(frozen=True)
class Put:
    """What a source gives one block: a vector per prompt, and one per token where `tokens` is set.

    Attributes:
        means: (n, d). tokens: per prompt (T, d), replaces `means` on the prompt's tokens.
    """

    means: Tensor
    tokens: list[Tensor] | None = None


def puts(
    experiment: ZPatching, own: Sequence[Tensor], source: Sequence[Tensor], others: Sequence[int]
) -> dict[str, Put]:
    """Vectors by source for one block.

    Args:
        own, source: token states of the target- and the source-language prompts, problem by problem.
        others: for each problem the one whose source stands in for its own.

    Returns:
        "pair", "other", "own": what takes the tokens' place ("replace"), or is added ("shift", without own).
    """
    own_mean = torch.stack([states.mean(dim=0) for states in own])
    pair = torch.stack([states.mean(dim=0) for states in source])
    other = pair[list(others)]
    if experiment.mode == "shift":
        return {"pair": Put(pair - own_mean), "other": Put(other - own_mean)}
    if experiment.vectors == "mean":
        return {"pair": Put(pair), "other": Put(other), "own": Put(own_mean)}
    mixed = [_mixed(s, o) for s, o in zip(source, own, strict=True)]
    swapped = [_mixed(source[i], o) for i, o in zip(others, own, strict=True)]
    return {"pair": Put(pair, mixed), "other": Put(other, swapped), "own": Put(own_mean)}


def _mixed(source: Tensor, own: Tensor) -> Tensor:
    return torch.from_numpy(transported(source.numpy(), own.numpy()).astype(np.float32))


def part_of(values: Tensor, basis: Tensor | None, part: Which) -> Tensor:
    """The part of vectors (..., d) inside Z ("Z"), outside of it ("Z⊥"), or all of it ("full")."""
    if basis is None or part == "full":
        return values
    inside = (values @ basis) @ basis.T
    return inside if part == "Z" else values - inside


def edit_of(
    experiment: ZPatching, patch: Patch, put: Put, basis: Tensor | None, problems: Sequence[int]
) -> Edit:
    """The edit of one condition on some of the problems, which are its prompts 0, 1, …"""
    chosen = put.means[list(problems)]
    tokens = None if put.tokens is None else [put.tokens[i] for i in problems]
    shift = part_of(chosen, basis, patch.part) if experiment.mode == "shift" else None

    def change(own: Tensor, about: Tokens) -> Tensor:
        prompts = about.prompts.cpu()
        if shift is not None:
            return own + shift[prompts].to(own)[:, None]
        new = chosen[prompts].to(own)[:, None] if tokens is None else _per_token(tokens, own, about)
        if basis is None:
            return new.expand_as(own)
        return own + part_of(new - own, basis.to(own), patch.part)

    return Edit(Site(experiment.site, patch.layer), change, (0,) * len(problems), experiment.scope)


def _per_token(tokens: Sequence[Tensor], own: Tensor, about: Tokens) -> Tensor:
    """(B, T, d): the vector of each token; padding keeps its own value."""
    out = own.clone()
    for row, (prompt, index) in enumerate(zip(about.prompts.tolist(), about.index.cpu(), strict=True)):
        real = torch.nonzero(index >= 0)[:, 0]
        out[row, real.to(own.device)] = tokens[prompt][index[real]].to(own)
    return out
