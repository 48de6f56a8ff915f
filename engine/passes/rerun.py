"""Patched runs of models that can't be run on packed tokens: whole prompts, from the patched block on.

Some attention can't be replaced by ours (ALiBi, windows that begin at multiples of their size), and some
blocks keep a recurrent state that has to be run through again. There the model's own decoder runs all
tokens of a prompt, a batch of its variants at a time; blocks before the patched one are stood in for by the
unpatched stream, so that every later one is called as the model calls it. Slower than `resume` by the
tokens before the patched one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.models.sites import Site, record, replace_first
from engine.models.taps import ModelTaps
from engine.passes.edits import Edit, Tokens, install
from engine.passes.linear import PackedLinears
from engine.passes.packed import Pack, emptied
from engine.passes.resume import Block
from engine.passes.shared_blocks import SharedBlocks

__all__ = ["capture_whole", "rerun"]

AT_PATCHED = ("attn_out", "mlp_out", "head_z")


def capture_whole(
    taps: ModelTaps, token_ids: Sequence[Sequence[int]], positions: Sequence[int], reads: Sequence[int]
) -> Pack:
    """Runs every prompt once alone, unpatched; one that is given several times runs once too.

    Args:
        token_ids: per prompt, up to the token read.
        positions, reads: per prompt, the patched token and the one whose next-token distribution is read.

    Call with the model's lock held and gradients off.
    """
    streams: list[list[Tensor]] = []
    found: dict[tuple[int, ...], tuple[int, dict[tuple[str, int], Tensor], Tensor]] = {}
    template: list[Any] = []

    def after(_module: object, _args: object, output: Any) -> None:
        template[:] = [emptied(output)]

    given, start = [tuple(ids) for ids in token_ids], 0
    handle = taps.layers[0].block.register_forward_hook(after)
    try:
        for ids in dict.fromkeys(given):
            at = torch.tensor([p for p, own in zip(positions, given, strict=True) if own == ids])
            with (
                record(taps, ("resid",), select=lambda value: value[0].clone()) as stream,
                record(taps, AT_PATCHED, select=_tokens(at)) as sites,
            ):
                output = taps.decoder(input_ids=_rows(taps, ids, 1), use_cache=False)
            streams.append([stream["resid", state] for state in range(taps.n_layers + 1)])
            found[ids] = start, dict(sites), output[0][0]
            start += len(ids)
    finally:
        handle.remove()
    starts = [found[ids][0] for ids in given]
    sites_of = {ids: own for ids, (_, own, _) in found.items()}
    patched = [
        {key: rows[given[:number].count(ids)] for key, rows in sites_of[ids].items()}
        for number, ids in enumerate(given)
    ]

    return Pack(
        starts=tuple(starts),
        positions=tuple(positions),
        tail_starts=tuple(start + position for start, position in zip(starts, positions, strict=True)),
        tails=tuple(map(len, given)),
        keys={},
        values={},
        states=tuple(torch.cat(states) for states in zip(*streams, strict=True)),
        attn_out=_at_patched(taps, patched, "attn_out"),
        mlp_out=_at_patched(taps, patched, "mlp_out"),
        head_z=_at_patched(taps, patched, "head_z"),
        calls=(),
        final=torch.stack([found[ids][2][read] for ids, read in zip(given, reads, strict=True)]),
        whole=(tuple(given), template[0]),
    )


def _at_patched(
    taps: ModelTaps, patched: Sequence[dict[tuple[str, int], Tensor]], component: str
) -> tuple[Tensor, ...]:
    """Of each block what prompts hold at their patched tokens, (P, width); empty where it has no site."""
    return tuple(
        torch.stack([sites[component, layer.index] for sites in patched])
        if (component, layer.index) in patched[0]
        else torch.zeros(0)
        for layer in taps.layers
    )


def rerun(
    taps: ModelTaps, linears: PackedLinears, site: Site, block: Block, vectors: Tensor
) -> tuple[Tensor, bool]:
    """Runs every variant of the block's prompts, each prompt's together.

    Args:
        linears: lent to the blocks that are run.
        vectors: (P, variants, width), model dtype.

    Returns:
        states after the final norm at the token read (P, variants, d), and whether no block was run.
        Call with the model's lock held and gradients off.
    """
    start = site.layer + (site.component == "resid_post")
    with linears.lent_to([layer.block for layer in taps.layers[start:]]):
        found = [
            _variants(taps, site, block.pack, member, own, start)
            for member, own in zip(block.members, vectors, strict=True)
        ]
    return torch.stack(found), start == taps.n_layers


def _variants(taps: ModelTaps, site: Site, pack: Pack, member: int, vectors: Tensor, start: int) -> Tensor:
    """One prompt with each of the vectors (variants, width): (variants, d)."""
    assert pack.whole is not None
    ids, template = pack.whole[0][member], pack.whole[1]
    position, first = pack.positions[member], pack.starts[member]
    stream = pack.states[start][first : first + len(ids)].repeat(len(vectors), 1, 1)
    shared = SharedBlocks(start, stream if template is None else replace_first(template, stream))
    tokens = Tokens(torch.full((len(vectors),), member), torch.arange(len(ids)).repeat(len(vectors), 1))

    def change(own: Tensor, _tokens: Tokens) -> Tensor:
        out = own.clone()
        out[:, position] = vectors.to(own.device)
        return out

    handles = []
    if site.component in ("resid_pre", "resid_post"):
        stream[:, position] = vectors.to(stream.device)
    if site.component != "resid_post" and not (site.component == "resid_pre" and start):
        edit = Edit(site, change, (position,) * len(vectors))
        handles.append(install(taps, site, [(edit, torch.arange(len(vectors)), tokens)]))
    try:
        with shared.standing_in(taps):
            output = taps.decoder(input_ids=_rows(taps, ids, len(vectors)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    state: Tensor = output[0][:, -1]
    return state


def _rows(taps: ModelTaps, ids: Sequence[int], count: int) -> Tensor:
    """A prompt `count` times, (count, tokens), on the embedding's device."""
    weight: Any = taps.embed.weight
    return torch.tensor([list(ids)] * count, device=weight.device)


def _tokens(positions: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda value: value[0].index_select(0, positions.to(value.device))
