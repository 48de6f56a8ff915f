"""What Z-patching puts in: token states, source vectors, and the edits made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import ot
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from engine.models.loading import LoadedModel
from engine.models.sites import Site, record
from engine.passes.edits import Edit, Tokens
from engine.passes.patch_engine import JobCancelled
from engine.z_patching.spec import Patch, Which, ZPatching

Array = NDArray[np.float64]
EXACT_CELLS = 512 * 512
"""Token pairs up to which transport is solved exactly; beyond it Sinkhorn is used."""
REGULARISATION = 0.01
"""Of Sinkhorn's entropy, in units of the largest cost."""


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
