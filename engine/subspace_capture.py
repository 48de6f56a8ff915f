"""What subspace scores take from a model's forward passes: the stream under personas, attention, the label.

Prompts are run packed, end to end without padding, so that every token of every prompt is there once and the
last token's attention is known exactly, whatever a family's windows, soft-caps and key heads are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention import PackedRun, Scoring, configured_modules, last_attention, packed_attention
from engine.capture import capture_unit
from engine.deltas import WeightDelta
from engine.errors import CaptureError
from engine.model import LoadedModel
from engine.positions import Positions
from engine.sites import record
from engine.steer import WeightShift

__all__ = ["Streams", "capture_labels", "capture_streams", "last_states"]

Array = np.ndarray


@dataclass(frozen=True)
class Streams:
    """Activations of some prompts, float32, prompts in order.

    Attributes:
        last: stream leaving every block at the last token (L, n, d).
        mlp_input: what the MLP receives there, after its norm (L, n, d).
        tokens: stream leaving every block at all tokens, one prompt after another (L, T, d).
        attention: the last token's attention to them, mean over heads (L, T).
    """

    last: Array
    mlp_input: Array
    tokens: Array
    attention: Array


@dataclass
class _Watched(PackedRun):
    """A packed run that keeps the last tokens' attention instead of keys and values."""

    attention: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        mixed = super().attend(module, q, k, v, scoring)
        self.keys.clear()
        self.values.clear()
        self.attention[id(module)] = last_attention(q, k, self.lengths, scoring)
        return mixed


def capture_streams(lm: LoadedModel, token_ids: Sequence[Sequence[int]], batch_tokens: int) -> Streams:
    """Runs prompts in packs of at most `batch_tokens` tokens.

    Raises:
        CaptureError: an activation is not finite.
    """
    parts = [_pack(lm, token_ids[pack.start : pack.stop]) for pack in packs(token_ids, batch_tokens)]
    together = Streams(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in Streams.__dataclass_fields__
        )
    )
    for name in Streams.__dataclass_fields__:
        _check_finite(getattr(together, name), name, lm.name)
    return together


def packs(token_ids: Sequence[Sequence[int]], batch_tokens: int) -> list[range]:
    """Runs of consecutive prompts with at most that many tokens together, one prompt at least."""
    found: list[range] = []
    start = total = 0
    for index, ids in enumerate(token_ids):
        if index > start and total + len(ids) > batch_tokens:
            found.append(range(start, index))
            start, total = index, 0
        total += len(ids)
    return [*found, range(start, len(token_ids))]


def _pack(lm: LoadedModel, token_ids: Sequence[Sequence[int]]) -> Streams:
    lengths = [len(ids) for ids in token_ids]
    ends = torch.tensor(lengths).cumsum(0) - 1
    ids = torch.tensor([token for prompt in token_ids for token in prompt], device=lm.device)
    steps = torch.cat([torch.arange(length) for length in lengths]).to(lm.device)
    run = _Watched(lengths)

    def at_ends(value: Tensor) -> Tensor:
        return value[0].index_select(0, ends.to(value.device)).float().cpu()

    def everywhere(value: Tensor) -> Tensor:
        return value[0].float().cpu()

    with (
        lm.lock,
        torch.inference_mode(),
        packed_attention(configured_modules(lm.model), run),
        record(lm.taps, ("resid_post",), select=everywhere) as stream,
        record(lm.taps, ("mlp_in",), select=at_ends) as mlp,
    ):
        lm.taps.decoder(input_ids=ids[None], position_ids=steps[None], use_cache=False)
    tokens = torch.stack([stream["resid_post", layer.index] for layer in lm.taps.layers])
    attention = [run.attention[id(layer.attn)].float().cpu() for layer in lm.taps.layers]
    return Streams(
        last=tokens[:, ends].numpy(),
        mlp_input=torch.stack([mlp["mlp_in", layer.index] for layer in lm.taps.layers]).numpy(),
        tokens=tokens.numpy(),
        attention=torch.stack(attention).numpy(),
    )


def last_states(lm: LoadedModel, token_ids: Sequence[Sequence[int]], batch_tokens: int) -> Array:
    """The stream leaving every block at the last token, float32 (L, n, d), by the model's own attention."""
    last = Positions("decision", "one", tuple(np.array([len(ids) - 1]) for ids in token_ids), {})
    order = sorted(range(len(token_ids)), key=lambda prompt: -len(token_ids[prompt]))
    found = capture_unit(
        lm, token_ids, order, {"decision": last}, components=("resid_post",), batch_tokens=batch_tokens
    )["decision"]
    back = np.argsort(order)
    return np.stack([found["resid_post", layer][back] for layer in range(lm.taps.n_layers)])


def capture_labels(
    lm: LoadedModel, deltas: Iterable[WeightDelta], token_ids: Sequence[Sequence[int]], batch_tokens: int
) -> Array:
    """D: the stream leaving every block at the last token with W + ΔW minus that with W − ΔW, (L, n, d).

    Raises:
        ModelError: a changed tensor can't be steered, see `WeightShift`.
        CaptureError: an activation is not finite.
    """
    shift = WeightShift(lm, deltas)
    with shift.at(1.0):
        plus = last_states(lm, token_ids, batch_tokens)
    with shift.at(-1.0):
        return plus - last_states(lm, token_ids, batch_tokens)


def _check_finite(values: Array, what: str, model: str) -> None:
    if not np.isfinite(values).all():
        raise CaptureError(
            f"Model {model!r} produced activations that are not finite.",
            expected="finite numbers",
            given=f"{int((~np.isfinite(values)).sum())} NaN or infinite numbers in {what}",
            next_step="check that the model's weights are those it was trained with.",
        )
