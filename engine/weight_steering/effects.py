"""What steered weights do to prompts: the next token's distribution, and how likely the text itself is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.models.loading import LoadedModel
from engine.models.sites import first_tensor
from engine.passes.batching import batches
from engine.passes.decoding import check_stop, in_batches
from engine.weights.steer import WeightShift

__all__ = ["Effects", "effects", "scored_tokens"]

CHUNK = 512
"""Rows of the vocabulary that are held at once."""

Condition = tuple[WeightShift | None, float]
"""A shift and its amplitude; None is the model as it is."""


@dataclass(frozen=True)
class Effects:
    """Numbers per condition and prompt.

    Attributes:
        kl: KL(steered ‖ unsteered) of the token that follows the prompt, nats.
        nll: −Σ log p of the prompt's own tokens from the second one on, nats, unknown ones left out.
        tokens: how many those are.
    """

    kl: Float[np.ndarray, "c n"]
    nll: Float[np.ndarray, "c n"]
    tokens: Int[np.ndarray, " n"]


def effects(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    conditions: Sequence[Condition],
    *,
    unknown: int | None = None,
    batch_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Effects:
    """Runs every prompt under every condition, batch by batch beside the unsteered model.

    Args:
        unknown: id of the model's unknown token. That a text holds something unknown is no token of the text:
            its probability says nothing of the text, and isn't counted.

    Raises:
        JobCancelled: `should_stop` said so. PatchError: a single prompt does not fit into memory.
    """
    shape = (len(conditions), len(token_ids))
    kl, nll = np.zeros(shape), np.zeros(shape)
    limit = batch_tokens or (8192 if lm.device.type == "cpu" else 65536)
    order = sorted(range(len(token_ids)), key=lambda i: -len(token_ids[i]))
    lengths = [len(token_ids[i]) for i in order]
    plan = [[order[i] for i in batch] for batch in batches(lengths, limit, lm.taps.rotary_switch)]

    def run(batch: list[int]) -> None:
        ids = [list(token_ids[i]) for i in batch]
        base, _ = _read(lm, ids, text=False)
        for number, (shift, alpha) in enumerate(conditions):
            check_stop(should_stop)
            if shift is None:
                last, own = _read(lm, ids, unknown)
            else:
                with shift.at(alpha):
                    last, own = _read(lm, ids, unknown)
            kl[number, batch] = (last.exp() * (last - base)).sum(-1).double().cpu().numpy()
            nll[number, batch] = own.cpu().numpy()

    in_batches(plan, run, on_progress, should_stop)
    return Effects(kl, nll, scored_tokens(token_ids, unknown))


def scored_tokens(token_ids: Sequence[Sequence[int]], unknown: int | None) -> Int[np.ndarray, " n"]:
    """How many tokens of each prompt have a probability: from the second one on, unknown ones left out."""
    return np.array([sum(token != unknown for token in ids[1:]) for ids in token_ids], dtype=np.int64)


def _read(
    lm: LoadedModel, ids: Sequence[Sequence[int]], unknown: int | None = None, *, text: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of what follows (n, V), float32, and −Σ log p of the prompts' own tokens (n,)."""
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=lm.device)
    lengths = torch.tensor([len(row) for row in ids], device=lm.device)
    mask = (torch.arange(longest, device=lm.device) < lengths[:, None]).long()
    with lm.lock, torch.inference_mode():
        hidden = first_tensor(lm.taps.decoder(input_ids=padded, attention_mask=mask, use_cache=False)[0])
        rows = torch.arange(len(ids), device=hidden.device)
        last = lm.taps.logits(hidden[rows, lengths.to(hidden.device) - 1]).float().log_softmax(-1)
        own = torch.zeros(len(ids), dtype=torch.float64)
        if text:
            told = mask[:, 1:].bool() if unknown is None else mask[:, 1:].bool() & (padded[:, 1:] != unknown)
            row, place = torch.nonzero(told, as_tuple=True)
            states, wanted = hidden[row.to(hidden.device), place.to(hidden.device)], padded[row, place + 1]
            parts = zip(states.split(CHUNK), wanted.split(CHUNK), strict=True)
            found = torch.cat([_log_prob(lm, state, token) for state, token in parts])
            own.index_add_(0, row.cpu(), -found)
    return last, own


def _log_prob(lm: LoadedModel, states: Tensor, wanted: Tensor) -> Tensor:
    logits = lm.taps.logits(states).float().log_softmax(-1)
    return logits.gather(-1, wanted.to(logits.device)[:, None])[:, 0].cpu().double()
