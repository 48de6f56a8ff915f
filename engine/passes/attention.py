"""Attention on packed tokens, registered beside Hugging Face's own implementations.

A model's blocks run unchanged (projections, rotary embeddings, norms, mixtures of experts stay theirs);
only the attention product is ours, because no padded mask describes what is needed: prompts of different
lengths laid end to end (`PackedRun`), or many variants of a prompt's last tokens that all share its cached
keys and values (`RowsRun`). The model is switched over by giving its modules a shallow copy of their config,
so that a config shared with another model is never touched, and which run is active is known per thread.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from engine.errors import PatchError

NAME = "patchbay_packed"
_ACTIVE = threading.local()


@dataclass(frozen=True)
class Scoring:
    """How one attention layer turns products into weights: scale, window (keys seen, self included), cap.

    `sinks` (h,) are scores of no token, to which a head may give weight.
    """

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None = None

    def weights(self, scores: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Softmax of float32 scores along the last axis; with sinks the weights sum to less than 1.

        Args:
            heads: the shape of a number for each head beside the scores, 1 along all other axes.
        """
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.float().to(scores.device).view(heads).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]


class Run(Protocol):
    """What an active run does with the queries, keys and values of one attention layer."""

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """(1, h, T, d_h), (1, g, T, d_h) twice -> (1, T, h, d_h)."""
        ...


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    run: Run | None = getattr(_ACTIVE, "run", None)
    extras = [name for name in ("sinks", "position_bias") if kwargs.get(name) is not None]
    if run is None or extras or attention_mask is not None or dropout:
        raise PatchError(
            "This attention layer cannot be run on packed tokens.",
            expected="causal attention in eval mode, without position biases or its own mask",
            given=f"{type(module).__name__} with {extras or 'a mask or dropout'}"
            if run is not None
            else f"{type(module).__name__} called outside a patch run",
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return run.attend(module, query, key, value, Scoring(scale, sliding_window, softcap, s_aux)), None


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The mask of a packed run: who sees whom is known to the run, not written into a tensor."""


AttentionInterface.register(NAME, _packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)


def configured_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that read the attention implementation from a config of their own."""
    return [m for m in model.modules() if isinstance(m.__dict__.get("config"), PretrainedConfig)]


@contextmanager
def packed_attention(modules: Sequence[nn.Module], run: Run) -> Iterator[None]:
    """Routes the attention of `modules` (see `configured_modules`) to `run` inside the `with` block.

    The modules get their own config objects back afterwards, exceptions included. Not reentrant; hold the
    model's lock.
    """
    shadows: dict[int, Any] = {}
    originals: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            config = module.__dict__["config"]
            if id(config) not in shadows:
                shadows[id(config)] = copy.copy(config)
                shadows[id(config)]._attn_implementation_internal = NAME
            originals.append((module, config))
            module.__dict__["config"] = shadows[id(config)]
        _ACTIVE.run = run
        yield
    finally:
        _ACTIVE.run = None
        for module, config in originals:
            module.__dict__["config"] = config


@dataclass
class PackedRun:
    """Whole prompts end to end: each segment attends causally to itself. Keeps every layer's K and V.

    Attributes:
        lengths: tokens per prompt; their sum is the packed length T.
        keys, values: filled by the run, attention module id -> (T, g, d_h).
    """

    lengths: Sequence[int]
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """Causal attention inside each segment, (1, T, h, d_h)."""
        self.keys[id(module)] = k[0].transpose(0, 1).contiguous()
        self.values[id(module)] = v[0].transpose(0, 1).contiguous()
        parts, start = [], 0
        for length in self.lengths:
            end = start + length
            parts.append(_segment(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], scoring))
            start = end
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _segment(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
    """Causal attention of one prompt, (1, h, t, d_h)."""
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    windowed = scoring.window is not None and scoring.window < length
    if scoring.softcap is None and scoring.sinks is None:
        mask = _causal(length, scoring.window, q.device) if windowed else None
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=not windowed, scale=scoring.scale, enable_gqa=group > 1
        )
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = _capped((q @ k.transpose(-1, -2)) * scoring.scale, scoring.softcap).float()
    scores.masked_fill_(~_causal(length, scoring.window, q.device), -torch.inf)
    return scoring.weights(scores, (1, -1, 1, 1)).to(v.dtype) @ v


def last_attention(q: Tensor, k: Tensor, lengths: Sequence[int], scoring: Scoring) -> Tensor:
    """Attention of every segment's last token to the segment's tokens, mean over heads, float32 (T,).

    Args:
        q, k: (1, h, T, d_h) and (1, g, T, d_h) of packed prompts. lengths: tokens of each.
    """
    heads, groups, width = q.shape[1], k.shape[1], q.shape[-1]
    parts, end = [], 0
    for length in lengths:
        end += length
        seen = length if scoring.window is None else min(length, scoring.window)
        query = q[0, :, end - 1].view(groups, heads // groups, width) * scoring.scale
        scores = query @ k[0, :, end - seen : end].transpose(-1, -2)
        scores = _capped(scores, scoring.softcap).float()
        weights = scoring.weights(scores, (groups, heads // groups, 1)).mean((0, 1))
        parts.append(functional.pad(weights, (length - seen, 0)))
    return torch.cat(parts)


def _causal(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length) booleans, True where query (row) sees key (column)."""
    steps = torch.arange(length, device=device)
    age = steps[:, None] - steps
    return (age >= 0) if window is None else (age >= 0) & (age < window)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


@dataclass
class RowsRun:
    """Variants of prompts' last tokens on the cached keys and values of what comes before them.

    Rows are ordered prompt x variant x tail token. Tail token j of a prompt sees the prompt's `prefix`
    cached tokens and tail tokens 0..j of its own variant.

    Attributes:
        variants, tail: rows per prompt and tokens per variant; the prompts all have the same tail here
            (shorter ones are filled up behind their last wanted token, where nothing looks).
        starts, prefix: per prompt, index of its first packed token and number of tokens before the patch.
        keys, values: of the packed prompts, attention module id -> (T, g, d_h).
    """

    variants: int
    tail: int
    starts: Sequence[int]
    prefix: Sequence[int]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    _index: dict[torch.device, Tensor] = field(default_factory=dict)
    _masks: dict[tuple[int | None, torch.device], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """Attention of all rows, (1, rows, h, d_h)."""
        prompts, variants, tail = len(self.starts), self.variants, self.tail
        heads, groups, width = q.shape[1], k.shape[1], q.shape[-1]
        per_group = heads // groups
        cached_k, cached_v = self._cached(self.keys, module, q), self._cached(self.values, module, q)
        queries = (q[0] * scoring.scale).view(groups, per_group, prompts, variants, tail, width)
        queries = queries.permute(2, 0, 3, 4, 1, 5).contiguous()
        own_k = k[0].view(groups, prompts, variants, tail, width).transpose(0, 1)
        own_v = v[0].view(groups, prompts, variants, tail, v.shape[-1]).transpose(0, 1)
        lead = (prompts, groups, variants, tail, per_group)
        flat = queries.view(prompts, groups, variants * tail * per_group, width)
        past = (flat @ cached_k.transpose(-1, -2)).view(*lead, cached_k.shape[2])
        scores = _capped(torch.cat([past, _own_scores(queries, own_k)], dim=-1), scoring.softcap).float()
        past_hidden, own_hidden = self._hidden(scoring.window, q.device)
        scores[..., : past.shape[-1]].masked_fill_(past_hidden, -torch.inf)
        if tail > 1:
            scores[..., past.shape[-1] :].masked_fill_(own_hidden, -torch.inf)
        weights = scoring.weights(scores, (1, groups, 1, 1, per_group, 1)).to(v.dtype)
        mixed = weights[..., : past.shape[-1]].reshape(*flat.shape[:3], past.shape[-1]) @ cached_v
        mixed = mixed.view(*lead, -1) + _own_mix(weights[..., past.shape[-1] :], own_v)
        return mixed.permute(0, 2, 3, 1, 4, 5).reshape(1, prompts * variants * tail, heads, -1)

    def _cached(self, store: dict[int, Tensor], module: nn.Module, like: Tensor) -> Tensor:
        """Keys or values before the patch, filled up to the longest: (prompts, g, longest, d_h)."""
        packed = store[id(module)]
        index = self._index.get(packed.device)
        if index is None:
            steps = torch.arange(max(self.prefix), device=packed.device)
            last = torch.tensor(self.prefix, device=packed.device)[:, None] - 1
            index = torch.tensor(self.starts, device=packed.device)[:, None] + torch.minimum(
                steps, last
            ).clamp(0)
            self._index[packed.device] = index
        rows = packed[index.reshape(-1)].view(*index.shape, *packed.shape[1:]).transpose(1, 2)
        return rows.to(like.device)

    def _hidden(self, window: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """What a row must not see: (prompts, 1, 1, tail, 1, longest) and (tail, 1, tail) booleans."""
        key = (window, device)
        if key not in self._masks:
            prefix = torch.tensor(self.prefix, device=device)[:, None, None]
            steps = torch.arange(max(self.prefix), device=device)
            tail = torch.arange(self.tail, device=device)
            past = (steps >= prefix).expand(-1, self.tail, -1)
            own = tail > tail[:, None]
            if window is not None:
                past = past | (prefix + tail[:, None] - steps >= window)
                own = own | (tail[:, None] - tail >= window)
            self._masks[key] = (past[:, None, None, :, None, :], own[:, None, :])
        return self._masks[key]


def _own_scores(queries: Tensor, own_k: Tensor) -> Tensor:
    """Scores of tail queries (p,g,c,m,r,w) on their own variant's keys (p,g,c,m,w): (p,g,c,m,r,m)."""
    prompts, groups, variants, tail, per_group, width = queries.shape
    if tail == 1:
        return (queries * own_k[..., None, :]).sum(-1, keepdim=True)
    flat = queries.view(prompts, groups, variants, tail * per_group, width)
    return (flat @ own_k.transpose(-1, -2)).view(prompts, groups, variants, tail, per_group, tail)


def _own_mix(weights: Tensor, own_v: Tensor) -> Tensor:
    """Value mix (p,g,c,m,r,w) of weights (p,g,c,m,r,m) over the own variant's values (p,g,c,m,w)."""
    prompts, groups, variants, tail, per_group, _ = weights.shape
    if tail == 1:
        return weights * own_v[..., None, :]
    flat = weights.reshape(prompts, groups, variants, tail * per_group, tail) @ own_v
    return flat.view(prompts, groups, variants, tail, per_group, -1)
