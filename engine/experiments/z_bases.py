"""The bases of Z, and the random subspaces beside it, as Z-patching asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from engine.analysis.subspace import multi_head_basis, random_basis
from engine.errors import PatchError
from engine.experiment import Lab
from engine.experiments.z_patching import Patch, ZPatching
from engine.experiments.z_vectors import token_states
from engine.kernels import head_kernels

Array = NDArray[np.float64]
PCA_PROMPTS = 64


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
        for layer in experiment.layers:
            right, sigma = head_kernels(lab.array, experiment.model, layer)
            z |= {(layer, k): multi_head_basis(right, sigma, k, experiment.basis) for k in experiment.ks}
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
