"""What must agree in a capture for subspace scores, measured on a few prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from engine.deltas import WeightDelta
from engine.model import LoadedModel
from engine.results import SelfCheck
from engine.self_checks import EPSILON, relative_deviation
from engine.subspace_capture import last_states

__all__ = ["check_label", "check_streams", "merged"]

BATCH_TOKENS = 4096
LABEL_LIMIT = 1e-4
"""Of the stream's size. Measured: 1e-6 for fine-tunes, 3e-5 where ΔW is as large as W, since a model as far
from a trained one as W − ΔW then is amplifies what float32 rounds."""


def check_streams(lm: LoadedModel, token_ids: Sequence[Sequence[int]], stored: np.ndarray) -> SelfCheck:
    """The stored clean stream of some prompts (L, n, d) = a plain forward pass of each."""
    plain = np.concatenate([last_states(lm, [ids], BATCH_TOKENS) for ids in token_ids], axis=1)
    detail = f"stream leaving every block at the last token of {len(token_ids)} prompts, float32"
    worst = relative_deviation(stored, plain)
    return SelfCheck.of("subspace scores: stored = plain forward pass", worst, EPSILON[torch.float32], detail)


def check_label(
    lm: LoadedModel,
    name: str,
    deltas: Sequence[WeightDelta],
    token_ids: Sequence[Sequence[int]],
    stored: np.ndarray,
) -> SelfCheck:
    """The stored label D of some prompts (L, n, d) = streams of models with W + ΔW and W − ΔW merged.

    Deviations are measured against the stream's size, as two float32 runs differ by its rounding; `detail`
    says what that is of D itself.
    """
    with merged(lm, deltas, 1.0):
        plus = last_states(lm, token_ids, BATCH_TOKENS)
    with merged(lm, deltas, -1.0):
        minus = last_states(lm, token_ids, BATCH_TOKENS)
    label = plus - minus
    worst = relative_deviation(stored - label + plus, plus)
    sizes = np.linalg.norm(label, axis=-1)
    off = np.linalg.norm(stored - label, axis=-1)[sizes > 0] / sizes[sizes > 0]
    of_label = f"; at most {off.max():.1e} of the label's own length" if off.size else ""
    detail = f"{name}, {len(token_ids)} prompts, against the stream's size{of_label}"
    return SelfCheck.of("subspace scores: label = merged weights", worst, LABEL_LIMIT, detail)


@contextmanager
def merged(lm: LoadedModel, deltas: Sequence[WeightDelta], alpha: float) -> Iterator[None]:
    """Inside the block the model's own weights are W + αΔW; behind it they are bit by bit what they were."""
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    kept = {}
    try:
        for delta in deltas:
            parameter = parameters[delta.name]
            kept[delta.name] = parameter.detach().cpu().clone()
            moved = parameter.detach().double().cpu() + alpha * torch.from_numpy(delta.matrix()).double()
            parameter.data.copy_(moved.to(parameter.dtype))
        yield
    finally:
        for name, values in kept.items():
            parameters[name].data.copy_(values)
