"""The slow and obvious way to patch: one prompt, plain forward hooks on the whole model.

The conditions of a prompt go through it as a batch of equally long rows, so there is no padding; sites or
tokens of their own may be patched in each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.models.sites import Site, first_tensor, replace_first
from engine.models.taps import ModelTaps


def head_sum(taps: ModelTaps, site: Site, z: Tensor) -> Tensor:
    """Summed contribution of the site's heads, (…, d), from all heads' z (…, h x d_h)."""
    layer = taps.layers[site.layer]
    heads = list(range(taps.n_heads)) if site.heads is None else list(site.heads)
    per_head = z.unflatten(-1, (taps.n_heads, taps.head_dim))[..., heads, :]
    return torch.einsum("...hf,hfd->...d", per_head, layer.w_o()[heads]) * layer.multiplier


@contextmanager
def patched(
    taps: ModelTaps, site: Site, position: int | Tensor, vector: Tensor, rows: slice | Tensor = slice(None)
) -> Iterator[None]:
    """Replaces the activation at (site, position) by `vector` (rows, width) in every forward pass.

    Args:
        position: of all rows, or one of each.
        rows: of the batch that are patched; numbered one by one where each has its own position.
    """
    layer = taps.layers[site.layer]

    def put(tensor: Tensor, value: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[rows, position] = value
        return tensor

    def before_block(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (put(args[0], vector), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": put(kwargs["hidden_states"], vector)}

    def after(scale: float) -> Any:
        return lambda _module, _args, output: replace_first(output, put(first_tensor(output), vector / scale))

    def before_projection(_module: Any, args: Any) -> Any:
        z = args[0].clone()
        own = z[rows, position].clone().unflatten(-1, (taps.n_heads, taps.head_dim))
        heads = list(range(taps.n_heads)) if site.heads is None else list(site.heads)
        own[:, heads] = vector.view(-1, len(heads), taps.head_dim)
        z[rows, position] = own.flatten(-2)
        return (z,)

    with ExitStack() as stack:
        if site.component == "resid_pre":
            stack.callback(layer.block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
        elif site.component == "resid_post":
            stack.callback(layer.block.register_forward_hook(after(1.0)).remove)
        elif site.component == "attn_out":
            stack.callback(layer.attn_contribution.register_forward_hook(after(layer.multiplier)).remove)
        elif site.component == "mlp_out":
            stack.callback(layer.mlp_contribution.register_forward_hook(after(layer.multiplier)).remove)
        elif site.component == "head_z":
            stack.callback(layer.o_proj.register_forward_pre_hook(before_projection).remove)
        else:
            seen: dict[str, Tensor] = {}

            def see(_module: Any, args: Any) -> None:
                seen["z"] = args[0][rows, position]

            def add(_module: Any, _args: Any, output: Any) -> Any:
                value = first_tensor(output).clone()
                value[rows, position] += (vector - head_sum(taps, site, seen["z"])) / layer.multiplier
                return replace_first(output, value)

            stack.callback(layer.o_proj.register_forward_pre_hook(see).remove)
            stack.callback(layer.attn.register_forward_hook(add).remove)
        yield


def log_probs(model: Any, ids: Sequence[int], read: int, batch: int = 1) -> Tensor:
    """Next-token log-probabilities at token `read`, float64 (batch, V), of one plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)] * batch), use_cache=False).logits[:, read]
    return logits.double().log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats along the last axis."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
