"""The bases of Z, and the random subspaces beside it, as Z-patching asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from engine.ard.spec import Ard, categories
from engine.ard.spectrum import conclusion, judged, spectrum, surviving, with_least_p
from engine.errors import PatchError
from engine.geometry.kernels import head_kernels
from engine.geometry.z import multi_head_basis, random_basis
from engine.lab.experiment import Lab
from engine.z_patching.spec import Patch, ZPatching
from engine.z_patching.vectors import token_states

Array = NDArray[np.float64]
PCA_PROMPTS = 64


@dataclass(frozen=True)
class Bases:
    """Z and the random subspaces beside it, each (d, k) float32.

    Attributes:
        z: by (layer, k). random: by (layer, k, draw).
        fits: for basis "ard", which stored fit gave a block's order, as plain data.
    """

    z: dict[tuple[int, int], Tensor]
    random: dict[tuple[int, int, int], Tensor]
    fits: tuple[dict[str, Any], ...] = ()

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
        PatchError: k exceeds what the states span, or a fit of lengthscales is missing or collapsed.
        AnalysisError: k exceeds what the kernels span.
    """
    d = int(lab.sizes(experiment.model)["d"])
    if experiment.ks[-1] >= d:
        raise PatchError(
            "Z has no complement.", expected=f"k below the width {d}", given=f"k = {experiment.ks[-1]}"
        )
    z: dict[tuple[int, int], Array] = {}
    fits: list[dict[str, Any]] = []
    states: dict[int, list[Tensor]] = {}
    if experiment.basis == "pca":
        lm, ids = lab.model(experiment.model), train_ids()
        states = token_states(lm, ids, experiment.site, experiment.layers, lab.should_stop)
    for place, layer in enumerate(experiment.layers):
        match experiment.basis:
            case "blocks" | "kernels" as joined:
                right, sigma = head_kernels(lab.array, experiment.model, layer, experiment.fold_norm)
                found = {k: multi_head_basis(right, sigma, k, joined) for k in experiment.ks}
            case "ard":
                logs, about = fitted(experiment.fits()[place], lab)
                found = {k: narrowest(logs, k) for k in experiment.ks}
                fits.append(about)
            case "pca":
                found = principal(torch.cat(states[layer]).numpy(), experiment.ks)
            case "random":
                found = {k: random_basis(d, k, _seed(experiment, layer, k, -1)) for k in experiment.ks}
        z |= {(layer, k): basis for k, basis in found.items()}
    random = {
        (layer, k, draw): _tensor(random_basis(d, k, _seed(experiment, layer, k, draw)))
        for layer, k in z
        for draw in range(experiment.draws)
    }
    return Bases({cell: _tensor(basis) for cell, basis in z.items()}, random, tuple(fits))


def fitted(wanted: Ard, lab: Lab) -> tuple[Array, dict[str, Any]]:
    """Log lengthscales (d,) of a stored fit's first start, and which run it is, as plain data.

    Raises:
        PatchError: there is no such run, or it collapsed.
    """
    stored = lab.stored(wanted)
    if stored is None:
        raise PatchError(
            f"Lengthscales have not been fitted at block {wanted.layer} under these settings.",
            expected=f"a stored run of: {wanted.describe()}",
            given="none",
            next_step="fit them on the page ARD-MMD, or by a command: python precompute.py run STORE "
            f"--condition '{json.dumps(wanted.to_json(), ensure_ascii=False)}'",
        )
    run_id, result = stored
    row = result.summary["fits"][0]
    if row["collapsed"]:
        raise PatchError(
            f"The fit of lengthscales at block {wanted.layer} collapsed: its dimensions have no order.",
            expected="finite lengthscales",
            given=f"run {run_id}: {row['words']}",
            next_step="choose a fit with a smaller λ, or the contrastive objective.",
        )
    table = result.tables["table"].filter(pl.col("draw") == 0).sort("dimension")
    logs: Array = table["log10_lengthscale"].to_numpy() * np.log(10.0)
    p = judged(with_least_p(row["held_out"], categories(wanted.to_json(), lab.prompts)))
    found = conclusion(spectrum(logs).kind, collapsed=False, p=p)
    under = int(surviving(logs)[0].sum())
    about = {"run_id": run_id, "layer": wanted.layer, "fit": wanted.describe(), "found": found, "p": p}
    return logs, {**about, "under": under, "rule": "outlier", "n_fitted": int(result.summary["n_fitted"])}


def narrowest(log_lengthscales: Float[np.ndarray, " d"], k: int) -> Float[np.ndarray, "d k"]:
    """The unit vectors of the k dimensions of smallest lengthscale, ties by number."""
    order = np.argsort(log_lengthscales, kind="stable")[:k]
    basis: Array = np.eye(len(log_lengthscales))[:, order]
    return basis


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
