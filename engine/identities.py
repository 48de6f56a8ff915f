"""The identities that every supported model must satisfy, measured on a forward pass.

The residual stream is a sum: resid_pre + attn_out + mlp_out = resid_post, one block's resid_post is the
next one's resid_pre, the heads' contributions add up to attn_out where no post-norm intervenes, a prompt's
first token (which sees only itself) has z = its own value, and the last state through final norm and
unembedding gives the model's logits. A wrong family entry (a missed post-norm, multiplier, transposition,
bias or query-key-value layout) breaks at least one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.results import SelfCheck
from engine.sites import Recording, record
from engine.taps import LayerTaps, ModelTaps

LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative tolerance by dtype. float16 and bfloat16: four rounding steps (eps 9.8e-4 and 7.8e-3), each side
being a chain of at most that many; half a step is what is seen. float32 (eps 1.2e-7): long sums in another
order, seen up to 3e-7 and growing with the width. A wrong entry is off by 0.1 to 1."""


class _Loaded(Protocol):
    model: Any
    taps: ModelTaps
    device: torch.device
    dtype: torch.dtype


@torch.no_grad()
def check_identities(lm: _Loaded, token_ids: Sequence[int] | Tensor) -> list[SelfCheck]:
    """Measures the identities on one token sequence.

    Args:
        lm: a loaded model.
        token_ids: (tokens,) or (batch, tokens) without padding.

    Returns:
        SelfChecks "residual identity", "stream identity", "heads identity" (absent where every block has
        a post-norm after its attention), "values identity" and "logits identity". A value is the worst
        token's ‖difference‖ / max ‖part‖ over all layers, in float32: relative to the largest vector in
        the sum, because that is what rounding scales with.
    """
    tokens = torch.as_tensor(token_ids, dtype=torch.long, device=lm.device)
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    parts = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z")
    with record(lm.taps, parts) as seen:
        output = lm.model(input_ids=tokens, use_cache=False)
    limit = LIMITS[lm.dtype]
    why = f"worst token, relative to the largest part of the sum; limit for {lm.dtype}".replace("torch.", "")
    checks = [
        SelfCheck.of(
            "residual identity", _worst(_residual(lm.taps, seen)), limit, f"pre+attn+mlp=post, {why}"
        ),
        SelfCheck.of("stream identity", _worst(_stream(lm.taps, seen)), limit, f"post(l)=pre(l+1), {why}"),
    ]
    heads = list(_heads(lm.taps, seen))
    if heads:
        checks.append(SelfCheck.of("heads identity", _worst(heads), limit, f"sum of heads=attn_out, {why}"))
    values = [_values(layer, seen, lm.model.config) for layer in lm.taps.layers]
    checks.append(SelfCheck.of("values identity", _worst(values), limit, f"first token's z=its value, {why}"))
    last = seen["resid_post", lm.taps.n_layers - 1]
    normed = lm.taps.final_norm(last)
    logits = lm.taps.logits(normed.to(lm.taps.unembedding.weight.device)).to(output.logits.device)
    value = _relative(logits.float() - output.logits.float(), output.logits)
    checks.append(SelfCheck.of("logits identity", value, limit, f"unembedded final norm=logits, {why}"))
    return checks


def _residual(model: ModelTaps, seen: Recording) -> Iterator[float]:
    for index in range(model.n_layers):
        post = seen["resid_post", index].float()
        parts = [seen[name, index].to(post.device).float() for name in ("resid_pre", "attn_out", "mlp_out")]
        yield _relative(parts[0] + parts[1] + parts[2] - post, post, *parts)


def _stream(model: ModelTaps, seen: Recording) -> Iterator[float]:
    yield 0.0
    for index in range(model.n_layers - 1):
        post = seen["resid_post", index]
        yield _relative(seen["resid_pre", index + 1].to(post.device).float() - post.float(), post)


def _heads(model: ModelTaps, seen: Recording) -> Iterator[float]:
    for layer in model.layers:
        if layer.attn_post_norm:
            continue
        attn_out = seen["attn_out", layer.index].float()
        total = sum_of_heads(layer, seen["head_z", layer.index]).to(attn_out.device)
        yield _relative(total - attn_out, attn_out)


def _values(layer: LayerTaps, seen: Recording, config: Any) -> float:
    stream, z = seen["resid_pre", layer.index][:, :1], seen["head_z", layer.index][:, :1].float()
    normed = (stream if layer.input_norm is None else layer.input_norm(stream)).float()
    value = torch.einsum("btd,ged->btge", normed, layer.w_v().to(normed.device))
    bias = layer.qkv_bias()[2]
    value = value if bias is None else value + bias.to(value.device)
    clip = getattr(config.get_text_config(), "clip_qkv", None)
    value = value if clip is None else value.clamp(-clip, clip)
    own = value.repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=2).flatten(2)
    return _relative(own.to(z.device) - z, z)


def sum_of_heads(layer: LayerTaps, z: Tensor) -> Tensor:
    """multiplier · (Σ_h z_h W_O^h + bias), float32 (..., d), from z (..., h·d_h)."""
    per_head = z.float().unflatten(-1, (layer.n_heads, layer.head_dim))
    total = torch.einsum("...he,hed->...d", per_head, layer.w_o().to(z.device))
    bias = layer.o_bias()
    return (total if bias is None else total + bias.to(z.device)) * layer.multiplier


def _relative(difference: Tensor, *parts: Tensor) -> float:
    """Worst token's ‖difference‖ over the largest of the parts' norms; NaN when anything is NaN."""
    scale = torch.stack([part.float().norm(dim=-1) for part in parts]).amax(dim=0)
    ratio = difference.norm(dim=-1) / scale.clamp_min(torch.finfo(torch.float32).tiny)
    return float(ratio.amax()) if not bool(ratio.isnan().any()) else float("nan")


def _worst(values: Iterator[float] | list[float]) -> float:
    collected = list(values)
    return float("nan") if any(map(math.isnan, collected)) else max(collected)
