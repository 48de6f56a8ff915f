"""One unpatched pass over packed prompts, keeping what patched runs need to resume from it.

Prompts are laid end to end in one row (no padding) with their own position numbers, and the model's decoder
runs on them as it is. Kept per block: keys and values of all tokens, the arguments it was called with (rotary
embeddings and the like, cut to the tail tokens), the stream entering it at the tail tokens, and the taps of
every site at the patched token. A prompt's *tail* is its tokens from the patched one to the one read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.sites import first_tensor, record, replace_first
from engine.models.taps import ModelTaps
from engine.passes.attention import PackedRun, packed_attention
from engine.passes.gated import gated_in_place


@dataclass(frozen=True)
class Call:
    """The arguments of one block besides the stream, cut to the tail tokens of the pack."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def at(self, rows: Tensor, memo: dict[int, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for the given tail tokens; `memo` shares equal selections between blocks."""

        def select(leaf: _PerToken) -> Tensor:
            if id(leaf.tensor) not in memo:
                memo[id(leaf.tensor)] = leaf.tensor.index_select(leaf.dim, rows.to(leaf.tensor.device))
            return memo[id(leaf.tensor)]

        return _map(self.args, _PerToken, select), _map(self.kwargs, _PerToken, select)


@dataclass(frozen=True)
class _PerToken:
    """A tensor with one entry per token along `dim`."""

    tensor: Tensor
    dim: int


@dataclass(frozen=True)
class Pack:
    """What one packed pass leaves behind for P prompts; row r of `tail`-indexed tensors is a tail token.

    Attributes:
        starts, positions: per prompt, index of its first packed token; tokens before the patched one.
            A prompt given several times is packed once.
        tail_starts, tails: per prompt, index of its patched token among the tail tokens; tail tokens.
        keys, values: attention module id -> (T, g, d_h).
        states: L + 1 tensors (tail tokens, d), the stream entering each block and leaving the last.
        attn_out, mlp_out, head_z: L tensors (P, width) at the patched token.
        calls: per block.
        final: (P, d) after the final norm, at the token read.
        attention_output: what an attention module returns besides its tensor (a template).
        whole: of `rerun.capture_whole`: every prompt's tokens, and what a block returns (a template). Then
            states have all tokens, tail_starts counts among these, and there are no keys, values and calls.
    """

    starts: tuple[int, ...]
    positions: tuple[int, ...]
    tail_starts: tuple[int, ...]
    tails: tuple[int, ...]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    states: tuple[Tensor, ...]
    attn_out: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]
    head_z: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    final: Tensor
    attention_output: Any = None
    whole: tuple[tuple[tuple[int, ...], ...], Any] | None = None

    def nbytes(self) -> int:
        """Bytes of everything kept."""
        kept = [*self.keys.values(), *self.values.values(), *self.states, self.final]
        kept += [*self.attn_out, *self.mlp_out, *self.head_z]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def capture_pack(
    taps: ModelTaps,
    modules: Sequence[nn.Module],
    token_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    reads: Sequence[int],
) -> Pack:
    """Runs prompts once, unpatched; one that is given several times, patched at other tokens, runs once too.

    Args:
        taps: the model.
        modules: `configured_modules` of it.
        token_ids: per prompt.
        positions, reads: per prompt, the patched token and the one whose next-token distribution is read.

    Call with the model's lock held and gradients off.
    """
    laid = _Laid.of(token_ids, positions, reads)
    device = taps.embed.weight.device
    assert isinstance(device, torch.device)
    patched = torch.tensor([s + p for s, p in zip(laid.starts, positions, strict=True)])
    tail = torch.tensor(laid.tail)
    read_rows = torch.tensor([s + r for s, r in zip(laid.starts, reads, strict=True)])
    run = PackedRun(laid.lengths)
    ids = torch.tensor([token for prompt in laid.prompts for token in prompt], device=device)
    steps = torch.cat([torch.arange(length) for length in laid.lengths]).to(device)
    with (
        packed_attention(modules, run),
        gated_in_place([layer.block for layer in taps.layers]),
        _last_mlp_at(taps, tail),  # before the recorders: they see what it puts back in place
        record(taps, ("resid",), select=_rows(tail)) as stream,
        record(taps, ("attn_out", "mlp_out", "head_z"), select=_rows(patched)) as sites,
        _recorded_calls(taps, tail) as calls,
    ):
        output = taps.decoder(input_ids=ids[None], position_ids=steps[None], use_cache=False)
    layers = range(taps.n_layers)
    return Pack(
        starts=laid.starts,
        positions=tuple(positions),
        tail_starts=laid.tail_starts,
        tails=tuple(read - position + 1 for position, read in zip(positions, reads, strict=True)),
        keys=run.keys,
        values=run.values,
        states=tuple(stream["resid", state] for state in range(taps.n_layers + 1)),
        attn_out=tuple(sites["attn_out", layer] for layer in layers),
        mlp_out=tuple(sites["mlp_out", layer] for layer in layers),
        head_z=tuple(sites["head_z", layer] for layer in layers),
        calls=tuple(calls.blocks[layer] for layer in layers),
        final=_rows(read_rows)(output[0]),
        attention_output=calls.attention_output,
    )


@dataclass(frozen=True)
class _Laid:
    """Prompts laid end to end, each once however often it is given.

    Attributes:
        prompts, lengths: the different ones, and their tokens.
        starts, tail_starts: per prompt given, as in `Pack`.
        tail: packed tokens from each prompt's first patched one to its last one read.
    """

    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    tail_starts: tuple[int, ...]
    tail: tuple[int, ...]

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]], positions: Sequence[int], reads: Sequence[int]) -> _Laid:
        ends: dict[tuple[int, ...], tuple[int, int]] = {}
        given = [tuple(ids) for ids in token_ids]
        for ids, position, read in zip(given, positions, reads, strict=True):
            first, last = ends.get(ids, (position, read))
            ends[ids] = min(first, position), max(last, read)
        start, begins = 0, dict[tuple[int, ...], tuple[int, int]]()
        tail: list[int] = []
        for ids, (first, last) in ends.items():
            begins[ids] = start, len(tail) - first
            tail += range(start + first, start + last + 1)
            start += len(ids)
        return cls(
            tuple(ends),
            tuple(map(len, ends)),
            tuple(begins[ids][0] for ids in given),
            tuple(begins[ids][1] + position for ids, position in zip(given, positions, strict=True)),
            tuple(tail),
        )


def _rows(rows: Tensor) -> Callable[[Tensor], Tensor]:
    def select(value: Tensor) -> Tensor:
        return value[0].index_select(0, rows.to(value.device))

    return select


@contextmanager
def _last_mlp_at(taps: ModelTaps, rows: Tensor) -> Iterator[None]:
    """Inside the block the last MLP runs on the given tokens alone and adds zeros to all others.

    Behind it nothing mixes tokens, so those are never read.
    """
    mlp, places = taps.layers[-1].mlp, []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        places.append((args[0].shape, rows.to(args[0].device)))
        return (args[0].index_select(1, places[-1][1]), *args[1:])

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        shape, kept = places.pop()
        found = first_tensor(output)
        spread = found.new_zeros(*shape[:2], found.shape[-1])
        return replace_first(output, spread.index_copy_(1, kept, found.reshape(1, len(kept), -1)))

    handles = (mlp.register_forward_pre_hook(before), mlp.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Calls:
    blocks: dict[int, Call]
    attention_output: Any = None


@contextmanager
def _recorded_calls(taps: ModelTaps, tail: Tensor) -> Iterator[_Calls]:
    """Keeps the arguments of every block and the shape of what attention returns."""
    calls = _Calls({})
    shared: dict[int, _PerToken] = {}
    alive: list[Tensor] = []

    def before(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = first_tensor(args).shape[1] if args else kwargs["hidden_states"].shape[1]

            def cut(tensor: Tensor) -> Any:
                dim = 1 if tensor.ndim > 1 else 0
                if tensor.shape[: dim + 1] != (1, tokens)[1 - dim :]:
                    return tensor
                if id(tensor) not in shared:
                    alive.append(tensor)  # keeps the id from being reused while calls are recorded
                    shared[id(tensor)] = _PerToken(tensor.index_select(dim, tail.to(tensor.device)), dim)
                return shared[id(tensor)]

            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            calls.blocks[index] = Call(_map(args[1:], Tensor, cut), _map(rest, Tensor, cut))

        return hook

    def after_attention(_module: nn.Module, _args: Any, output: Any) -> None:
        calls.attention_output = emptied(output)

    handles = [
        layer.block.register_forward_pre_hook(before(layer.index), with_kwargs=True) for layer in taps.layers
    ]
    handles.append(taps.layers[0].attn.register_forward_hook(after_attention))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def emptied(output: Any) -> Any:
    """What a module returned without its tensors: None, or a tuple or list of as many Nones."""
    return type(output)([None] * len(output)) if isinstance(output, (tuple, list)) else None


def _map(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """`tree` (nested tuples, lists, dicts) with `function` applied to leaves of the given kind."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map(value, kind, function) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([_map(value, kind, function) for value in tree])
    return tree
