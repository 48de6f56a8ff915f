"""What must agree in a capture for subspace scores, measured on a few prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from engine.models.check import SelfCheck
from engine.models.loading import LoadedModel
from engine.models.tensor_parts import in_parts
from engine.passes.blockwise import in_float32
from engine.passes.rounding import LAST, MULTIPLE, Sites, measure_noise, relative_rows
from engine.passes.self_checks import worst_site
from engine.subspaces.capture import last_states
from engine.weights.deltas import WeightDelta

__all__ = ["check_label", "check_streams", "merged"]

BATCH_TOKENS = 4096


def check_streams(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    stored: np.ndarray,
    advance: Callable[[], object] = lambda: None,
) -> SelfCheck:
    """The stored clean stream of some prompts (L, n, d) = a plain forward pass of each.

    Args:
        advance: called after each prompt.
    """
    noise = measure_noise(lm, token_ids, advance=advance)
    plain = [noise.plain["resid", layer + 1] for layer in range(len(stored))]
    return _against("subspace scores: stored = plain forward pass", stored, plain, noise.sites)


def check_label(
    lm: LoadedModel,
    name: str,
    deltas: Iterable[WeightDelta] | Mapping[str, WeightDelta],
    token_ids: Sequence[Sequence[int]],
    stored: np.ndarray,
    advance: Callable[[], object] = lambda: None,
) -> SelfCheck:
    """The stored label D of some prompts (L, n, d) = streams of models with W + ΔW and W − ΔW merged.

    Deviations are measured against the larger of the two streams, as two float32 runs differ by its rounding,
    which is measured on both merged models; `detail` says what the deviation is of D itself.

    Args:
        deltas: as in `merged`.
        advance: called after each prompt of either sign.
    """
    with merged(lm, deltas, 1.0):
        plus = last_states(lm, token_ids, BATCH_TOKENS)
        sites = measure_noise(lm, token_ids, advance=advance).sites
    with merged(lm, deltas, -1.0):
        minus = last_states(lm, token_ids, BATCH_TOKENS)
        noise = measure_noise(lm, token_ids, advance=advance).sites
        sites = {key: value + sites[key] for key, value in noise.items()}
    label = plus - minus
    sizes = np.linalg.norm(label, axis=-1)
    off = np.linalg.norm(stored - label, axis=-1)[sizes > 0] / sizes[sizes > 0]
    of_label = f"; at most {off.max():.1e} of the label's own length" if off.size else ""
    told = f"; {name}, against the stream's size{of_label}"
    plus_larger = np.linalg.norm(plus, axis=-1, keepdims=True) > np.linalg.norm(minus, axis=-1, keepdims=True)
    larger = np.where(plus_larger, plus, minus)
    return _against("subspace scores: label = merged weights", stored - label + larger, larger, sites, told)


def _against(
    name: str, found: np.ndarray, expected: Iterable[np.ndarray], sites: Sites, told: str = ""
) -> SelfCheck:
    """Whether states leaving every block (L, n, d) agree within the noise there."""
    measured = {}
    for layer, (rows, wanted) in enumerate(zip(found, expected, strict=True)):
        key = (LAST, "resid", layer + 1)
        measured[key] = float(relative_rows(rows, wanted).max()), MULTIPLE * sites[key]
    return worst_site(name, measured, told)


@contextmanager
def merged(
    lm: LoadedModel, deltas: Iterable[WeightDelta] | Mapping[str, WeightDelta], alpha: float
) -> Iterator[None]:
    """Inside the block forward passes are in float32 with weights W + αΔW, each put on while it is used.

    Args:
        deltas: a mapping from names is asked for one difference at a time.
    """
    known = deltas if isinstance(deltas, Mapping) else {delta.name: delta for delta in deltas}
    with in_float32(lm, {name: partial(_moved, known, name, alpha) for name in known}):
        yield


def _moved(deltas: Mapping[str, WeightDelta], name: str, alpha: float, own: torch.Tensor) -> torch.Tensor:
    """W + αΔW, the sum in float64, float32."""
    found = torch.empty(own.shape, dtype=torch.float32)
    change = torch.from_numpy(deltas[name].matrix())
    for target, weight, by in zip(*map(in_parts, (found, own, change)), strict=True):
        target.copy_(weight.cpu().double() + alpha * by.double())
    return found.to(own.device)
