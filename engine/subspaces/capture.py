"""What subspace scores take from a model's forward passes: the stream under personas, attention, the label.

Prompts are run packed, end to end without padding, so that every token of every prompt is there once and the
last token's attention is known exactly, whatever a family's windows, soft-caps and key heads are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import CaptureError
from engine.models.loading import LoadedModel
from engine.models.memory import in_halves
from engine.models.sites import record
from engine.passes.attention import PackedRun, Scoring, configured_modules, last_attention, packed_attention
from engine.passes.batching import sides
from engine.passes.capture import called, capture_unit, not_finite, too_long
from engine.prompts.positions import Positions
from engine.weights.deltas import WeightDelta
from engine.weights.steer import WeightShift

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


def capture_streams(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    batch_tokens: int,
    names: Sequence[str] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Streams:
    """Runs prompts in packs of at most `batch_tokens` tokens; one that does not fit into memory in halves.

    Args:
        names: ids of the prompts, for messages; without them numbers are told.
        advance: told how many prompts were run after each pack.

    Raises:
        CaptureError: a single prompt does not fit into memory, or an activation is not finite.
    """
    parts: list[Streams] = []

    def run(pack: list[int]) -> None:
        found = _pack(lm, [token_ids[prompt] for prompt in pack])
        _check_finite(found, lm, [called(prompt, names) for prompt in pack])
        parts.append(found)

    def refusal(prompt: int, error: Exception) -> CaptureError:
        return too_long(called(prompt, names), len(token_ids[prompt]), error)

    for done in in_halves(packs(token_ids, batch_tokens, lm.taps.rotary_switch), run, refusal):
        advance(len(done))
    return Streams(
        *(
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in Streams.__dataclass_fields__
        )
    )


def packs(token_ids: Sequence[Sequence[int]], batch_tokens: int, switch: int | None = None) -> list[range]:
    """Runs of consecutive prompts with at most that many tokens together, one prompt at least.

    Args:
        switch: prompts up to this length and longer ones never share one (`ModelTaps.rotary_switch`).
    """
    found: list[range] = []
    start = total = 0
    for index, ids in enumerate(token_ids):
        other = len(sides([len(token_ids[start]), len(ids)], switch)) > 1
        if index > start and (other or total + len(ids) > batch_tokens):
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


def last_states(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    batch_tokens: int,
    names: Sequence[str] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Array:
    """The stream leaving every block at the last token, float32 (L, n, d), by the model's own attention."""
    last = Positions("decision", "one", tuple(np.array([len(ids) - 1]) for ids in token_ids), {})
    order = sorted(range(len(token_ids)), key=lambda prompt: -len(token_ids[prompt]))
    found = capture_unit(
        lm,
        token_ids,
        order,
        {"decision": last},
        components=("resid_post",),
        batch_tokens=batch_tokens,
        names=names,
        advance=advance,
    )["decision"]
    back = np.argsort(order)
    return np.stack([found["resid_post", layer][back] for layer in range(lm.taps.n_layers)])


def capture_labels(
    lm: LoadedModel,
    deltas: Iterable[WeightDelta] | Mapping[str, WeightDelta],
    token_ids: Sequence[Sequence[int]],
    batch_tokens: int,
    names: Sequence[str] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Array:
    """D: the stream leaving every block at the last token with W + ΔW minus that with W − ΔW, (L, n, d).

    Args:
        deltas: of a mapping from names large dense ones are read when they are used, see `WeightShift`.
        advance: told how many prompts were run after each batch; every prompt is run twice.

    Raises:
        ModelError: a changed tensor can't be steered, see `WeightShift`.
        CaptureError: an activation is not finite.
    """
    shift = WeightShift(lm, deltas)
    with shift.at(1.0):
        plus = last_states(lm, token_ids, batch_tokens, names, advance)
    with shift.at(-1.0):
        return plus - last_states(lm, token_ids, batch_tokens, names, advance)


def _check_finite(found: Streams, lm: LoadedModel, prompts: Sequence[str]) -> None:
    """CaptureError naming stream, block and prompt of the first number that is not finite."""
    for name in ("last", "mlp_input"):
        bad = np.argwhere(~np.isfinite(getattr(found, name)).all(axis=2))
        if bad.size:
            layer, prompt = bad[0]
            raise not_finite(lm, (f"the stream {name!r}", int(layer)), "decision", [prompts[prompt]])
    for name in ("tokens", "attention"):
        if not np.isfinite(getattr(found, name)).all():
            more = f" or {len(prompts) - 1} packed with it" if len(prompts) > 1 else ""
            layer = int(np.argwhere(~np.isfinite(getattr(found, name)))[0][0])
            raise not_finite(lm, (f"the stream {name!r}", layer), "tokens", [f"{prompts[0]}{more}"])
