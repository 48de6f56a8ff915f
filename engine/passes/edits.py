"""Edits: what becomes of the activations at a site, put in by a hook at that very site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.errors import PatchError
from engine.models.sites import Site, first_tensor, replace_first
from engine.models.taps import ModelTaps
from engine.passes.live import plain_weight


@dataclass(frozen=True)
class Tokens:
    """Which tokens a tensor (B, T, width) is about.

    Attributes:
        prompts: (B,) index of each row's prompt.
        index: (B, T) place in the row's own sequence, 0 for its first token; negative is padding, from the
            prompt's length on they are generated.
    """

    prompts: Tensor
    index: Tensor


Change = Callable[[Tensor, Tokens], Tensor]
"""Activations at a site (B, T, width) and which tokens they are -> what takes their place, same shape."""


@dataclass(frozen=True)
class Edit:
    """One intervention on every prompt.

    Attributes:
        site: where; `site.heads` restricts head_z and head_out to those heads. head_out is the summed
            contribution of the heads, without the output projection's bias.
        change: what becomes of the activations; it leaves alone the tokens it is not about.
        first: per prompt, the earliest token that `change` may touch.
        scope: "prompt" runs it on the prompt's tokens only, "all" on generated ones too.
    """

    site: Site
    change: Change
    first: tuple[int, ...]
    scope: Literal["prompt", "all"] = "prompt"


def replace_at(site: Site, positions: Sequence[int], vectors: Any) -> Edit:
    """The edit that puts a vector in the place of one token's activation.

    Args:
        positions: per prompt, the index of the token.
        vectors: (n, width), array or tensor.

    Raises:
        PatchError: one is missing for a prompt, or a vector is not finite.
    """
    values, where = torch.as_tensor(vectors), torch.as_tensor(positions, dtype=torch.long)
    if values.ndim != 2 or len(values) != len(where):
        raise PatchError(
            f"The vectors to put in at {site} do not fit the prompts.",
            expected=f"({len(where)}, width)",
            given=tuple(values.shape),
        )
    if not bool(torch.isfinite(values).all()):
        raise PatchError(
            f"The vectors to put in at {site} are not finite.",
            expected="finite numbers",
            given="NaN or infinity",
            next_step="check the map or the moments they come from.",
        )

    def change(own: Tensor, tokens: Tokens) -> Tensor:
        prompts = tokens.prompts.cpu()
        here = tokens.index == where[prompts].to(tokens.index.device)[:, None]
        return torch.where(here[..., None].to(own.device), values[prompts][:, None].to(own), own)

    return Edit(site, change, tuple(int(position) for position in positions))


Share = tuple[Edit, Tensor, Tokens]
"""An edit, the rows it changes, and which tokens they are."""


def install(taps: ModelTaps, site: Site, shares: Sequence[Share]) -> Any:
    """One hook at a site for all its edits; returns its handle, to be removed."""
    layer = taps.layers[site.layer]

    def changed(values: Tensor, columns: list[int] | None = None, factor: float = 1.0) -> Tensor:
        """The tensor with the edits' rows changed; `factor` times it is what the site holds."""
        out = values.clone()
        for edit, at, tokens in shares:
            rows = at.to(values.device)
            own = values[rows] if columns is None else values[rows][..., columns]
            new = edit.change(own if factor == 1.0 else own * factor, tokens).to(values.dtype)
            new = new if factor == 1.0 else new / factor
            if columns is None:
                out[rows] = new
            else:
                steps = torch.arange(values.shape[1], device=rows.device)
                out[rows[:, None, None], steps[:, None], torch.tensor(columns, device=rows.device)] = new
        return out

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(first_tensor(args)), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(first_tensor(kwargs["hidden_states"]))}

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        factor = 1.0 if site.component == "resid_post" else layer.multiplier
        return replace_first(output, changed(first_tensor(output), None, factor))

    def into_projection(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (changed(args[0], head_columns(taps, site)), *args[1:])

    def out_of_projection(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        out = output.clone()
        for edit, at, tokens in shares:
            rows = at.to(output.device)
            own = _head_sum(taps, site, args[0][rows])
            out[rows] += (edit.change(own, tokens).to(own) - own) / layer.multiplier
        return out

    match site.component:
        case "resid_pre":
            return layer.block.register_forward_pre_hook(before, with_kwargs=True)
        case "resid_post":
            return layer.block.register_forward_hook(after)
        case "attn_out":
            return layer.attn_contribution.register_forward_hook(after)
        case "mlp_out":
            return layer.mlp_contribution.register_forward_hook(after)
        case "head_z":
            return layer.o_proj.register_forward_pre_hook(into_projection)
    return layer.o_proj.register_forward_hook(out_of_projection)


def head_columns(taps: ModelTaps, site: Site) -> list[int]:
    """The columns of z that belong to the site's heads."""
    heads = range(taps.n_heads) if site.heads is None else site.heads
    return [head * taps.head_dim + i for head in heads for i in range(taps.head_dim)]


def _head_sum(taps: ModelTaps, site: Site, z: Tensor) -> Tensor:
    """What the site's heads add to the stream, (B, T, d), without the projection's bias."""
    layer = taps.layers[site.layer]
    kept, columns = torch.zeros_like(z), head_columns(taps, site)
    kept[..., columns] = z[..., columns]
    weight = plain_weight(layer.o_proj).to(kept.dtype)
    product = kept @ (weight if layer.family.transposed else weight.T)
    return product * layer.multiplier
