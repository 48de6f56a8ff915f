"""Resuming an unpatched pass at a site: only what the patch can change is computed again.

A `Block` is some prompts of a pack with the same number of variants each. `inject` puts the vectors in place
and says at which block of the model to go on: the stream for residual sites; for the MLP's contribution the
end of its block (the MLP isn't run); for the attention's the same block with its attention replaced by a
constant, or, where attention and MLP read the same input, again the end of the block. `resume` runs the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.sites import Site, first_tensor, replace_first
from engine.models.taps import LayerTaps, ModelTaps
from engine.passes.attention import RowsRun, packed_attention
from engine.passes.edits import head_columns
from engine.passes.gated import gated_in_place
from engine.passes.linear import PackedLinears
from engine.passes.packed import Pack


@dataclass
class Block:
    """Prompts `members` of a pack, each with `variants` rows of `tail` tokens (shorter tails filled up)."""

    pack: Pack
    members: Sequence[int]
    variants: int
    _memo: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tail(self) -> int:
        """Tokens per row: the longest tail among the prompts."""
        return max(self.pack.tails[i] for i in self.members)

    def tail_rows(self) -> Tensor:
        """(P, tail) indices into the pack's tail tokens; behind a prompt's own tail its last one repeats."""
        first = torch.tensor([self.pack.tail_starts[i] for i in self.members])[:, None]
        last = torch.tensor([self.pack.tails[i] for i in self.members])[:, None] - 1
        return first + torch.minimum(torch.arange(self.tail), last)

    def read_steps(self) -> Tensor:
        """(P,) index of the token read within the tail."""
        return torch.tensor([self.pack.tails[i] - 1 for i in self.members])

    def call(self, layer: int, patched_only: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a block of the model for all rows, or for the patched tokens alone."""
        rows = self.tail_rows()[:, :1] if patched_only else self.tail_rows()
        repeated = rows[:, None].expand(-1, self.variants, -1).reshape(-1)
        return self.pack.calls[layer].at(repeated, {} if patched_only else self._memo)

    def of(self, tensor: Tensor) -> Tensor:
        """The block's prompts of a (pack prompts, width) tensor, as (P, 1, width)."""
        return tensor[list(self.members), None]


def own_values(taps: ModelTaps, site: Site, pack: Pack) -> Tensor:
    """Unpatched activations at a site at the patched tokens, (prompts of the pack, width), model dtype."""
    layer = taps.layers[site.layer]
    first = list(pack.tail_starts)
    match site.component:
        case "resid_pre":
            return pack.states[site.layer][first]
        case "resid_post":
            return pack.states[site.layer + 1][first]
        case "attn_out":
            return pack.attn_out[site.layer]
        case "mlp_out":
            return pack.mlp_out[site.layer]
        case "head_z":
            return pack.head_z[site.layer][:, head_columns(taps, site)]
    kept = torch.zeros_like(pack.head_z[site.layer])
    columns = head_columns(taps, site)
    kept[:, columns] = pack.head_z[site.layer][:, columns]
    return (layer.o_proj(kept) - layer.o_proj(torch.zeros_like(kept))) * layer.multiplier


def inject(taps: ModelTaps, site: Site, block: Block, vectors: Tensor) -> tuple[Tensor, int]:
    """Puts vectors in place.

    Args:
        vectors: (P, variants, width) in the model's dtype.

    Returns:
        the stream (P, variants, tail, d) and the index of the block to go on with (L: only the head is left).
    """
    pack, index = block.pack, site.layer
    layer = taps.layers[index]
    if site.component == "resid_pre":
        return _with_patched(block, pack.states[index], vectors), index
    end = pack.states[index + 1]
    if site.component == "resid_post":
        return _with_patched(block, end, vectors), index + 1
    before = block.of(pack.states[index][list(pack.tail_starts)])
    if site.component == "mlp_out":
        patched = before + block.of(pack.attn_out[index]) + vectors
        return _with_patched(block, end, patched), index + 1
    attention, contribution = _attention_parts(taps, site, block, vectors)
    if layer.parallel:
        added = layer.o_proj(attention) * layer.multiplier if contribution is None else contribution
        patched = before + added + block.of(pack.mlp_out[index])
        return _with_patched(block, end, patched), index + 1
    stream = before.expand(-1, block.variants, -1).reshape(1, -1, taps.d)
    args, kwargs = block.call(index, patched_only=True)
    with _attention_replaced(layer, pack.attention_output, attention, contribution):
        patched = first_tensor(layer.block(stream, *args, **kwargs))
    return _with_patched(block, end, patched.view(len(block.members), block.variants, -1)), index + 1


def _attention_parts(
    taps: ModelTaps, site: Site, block: Block, vectors: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What replaces the attention: the input of its output projection, or what it adds to the stream."""
    pack, index = block.pack, site.layer
    if site.component == "attn_out":
        return None, vectors
    if site.component == "head_out":
        return None, block.of(pack.attn_out[index] - own_values(taps, site, pack)) + vectors
    z = block.of(pack.head_z[index]).repeat(1, block.variants, 1)
    z[..., head_columns(taps, site)] = vectors
    return z, None


@contextmanager
def _attention_replaced(
    layer: LayerTaps, template: Any, z: Tensor | None, contribution: Tensor | None
) -> Iterator[None]:
    """Inside the block the layer's attention isn't run: it returns o_proj(z), or adds `contribution`."""
    replaced: list[tuple[nn.Module, Any]] = []

    def answer(module: nn.Module, value: Tensor, *, wrapped: bool) -> None:
        flat = value.reshape(1, -1, value.shape[-1])
        output = replace_first(template, flat) if wrapped else flat
        replaced.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = lambda *_args, **_kwargs: output

    try:
        if z is not None:
            answer(layer.attn, layer.o_proj(z), wrapped=True)
        elif contribution is not None:
            answer(layer.attn, contribution / layer.multiplier, wrapped=True)
            if layer.attn_contribution is not layer.attn:
                answer(layer.attn_contribution, contribution / layer.multiplier, wrapped=False)
        yield
    finally:
        for module, previous in reversed(replaced):
            if previous is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = previous


def _with_patched(block: Block, state: Tensor, patched: Tensor) -> Tensor:
    """The tail's unpatched stream with the patched token's put in, (P, variants, tail, d)."""
    if block.tail == 1:
        return patched[:, :, None].expand(-1, block.variants, -1, -1)
    rows = state[block.tail_rows().reshape(-1)].view(len(block.members), 1, block.tail, -1)
    stream = rows.repeat(1, block.variants, 1, 1)
    stream[:, :, 0] = patched
    return stream


def resume(
    taps: ModelTaps,
    modules: Sequence[nn.Module],
    linears: PackedLinears,
    site: Site,
    block: Block,
    vectors: Tensor,
) -> tuple[Tensor, bool]:
    """Runs what a patch can change.

    Args:
        modules: `configured_modules` of the model.
        linears: lent to the blocks that are run.
        vectors: (P, variants, width), model dtype.

    Returns:
        states after the final norm at the token read (P, variants, d), and whether no block was run.
        Call with the model's lock held and gradients off.
    """
    pack = block.pack
    run = RowsRun(
        variants=block.variants,
        tail=block.tail,
        starts=[pack.starts[i] for i in block.members],
        prefix=[pack.positions[i] for i in block.members],
        keys=pack.keys,
        values=pack.values,
    )
    skipped = site.component in ("resid_post", "mlp_out")
    needed = [layer.block for layer in taps.layers[site.layer + skipped :]]
    with packed_attention(modules, run), linears.lent_to(needed), gated_in_place(needed):
        stream, start = inject(taps, site, block, vectors)
        stream = stream.reshape(1, -1, taps.d)
        for layer in taps.layers[start:]:
            args, kwargs = block.call(layer.index, patched_only=False)
            stream = first_tensor(layer.block(stream, *args, **kwargs))
        stream = stream.view(len(block.members), block.variants, block.tail, taps.d)
        read = block.read_steps().to(stream.device)
        final = stream[torch.arange(len(read), device=stream.device), :, read]
        return taps.final_norm(final), start == taps.n_layers
