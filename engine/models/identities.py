"""The identities that every supported model must satisfy, measured on a forward pass.

The residual stream is a sum: resid_pre + attn_out + mlp_out = resid_post, one block's resid_post is the
next one's resid_pre, the heads' contributions add up to attn_out where no post-norm intervenes, a prompt's
first token (which sees only itself) has z = its own value, an MLP reads the stream (with the attention's
contribution, unless both are parallel) through its norm, and the last state through final norm and
unembedding gives the model's logits. A wrong family entry (a missed post-norm, multiplier, transposition,
bias or query-key-value layout) breaks at least one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.models.check import SelfCheck
from engine.models.sites import Recording, record
from engine.models.taps import LayerTaps, ModelTaps
from engine.passes.attention import PackedRun, configured_modules, packed_attention

LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative tolerance by dtype. float16 and bfloat16: four rounding steps (eps 9.8e-4 and 7.8e-3), each side
being a chain of at most that many; half a step is what is seen. float32 (eps 1.2e-7): long sums in another
order, seen up to 3e-7 and growing with the width. A wrong entry is off by 0.1 to 1."""

LIVE = 5e-2
"""The same of heads and values where a model runs on codes: its layers compute in the dtype of their method,
and some round their inputs to 8 bits, e4m3 by up to 1/16 of each number (2.5 % in the mean)."""


class _Loaded(Protocol):
    name: str
    model: Any
    taps: ModelTaps
    device: torch.device
    dtype: torch.dtype
    live: bool


@torch.no_grad()
def check_identities(lm: _Loaded, token_ids: Sequence[int] | Tensor) -> list[SelfCheck]:
    """Measures the identities on one token sequence.

    Args:
        lm: a loaded model.
        token_ids: (tokens,) or (batch, tokens) without padding.

    Returns:
        SelfChecks "residual identity", "stream identity", "heads identity" (absent where every block has
        a post-norm after its attention), "values identity", "inputs identity" and "logits identity". A value
        is the worst token's ‖difference‖ / max ‖part‖ over all layers, in float32: relative to the largest
        vector in the sum, because that is what rounding scales with.

    Raises:
        ModelError: the forward pass gives NaN or infinity, which says nothing of the identities.
    """
    tokens = torch.as_tensor(token_ids, dtype=torch.long, device=lm.device)
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    parts = ("resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out", "head_z")
    with record(lm.taps, parts) as seen:
        output = lm.model(input_ids=tokens, use_cache=False)
    _check_overflow(lm, seen, output.logits)
    limit = LIMITS[lm.dtype]
    why = f"worst token, relative to the largest part of the sum; limit for {lm.dtype}".replace("torch.", "")
    checks = [
        SelfCheck.of(
            "residual identity", _worst(_residual(lm.taps, seen)), limit, f"pre+attn+mlp=post, {why}"
        ),
        SelfCheck.of("stream identity", _worst(_stream(lm.taps, seen)), limit, f"post(l)=pre(l+1), {why}"),
    ]
    heads = list(_heads(lm.taps, seen))
    of_weights = LIVE if lm.live else limit
    if heads:
        told = f"sum of heads=attn_out, {why}"
        checks.append(SelfCheck.of("heads identity", _worst(heads), of_weights, told))
    if lm.taps.family.z in ("values", "sunk"):
        values = [_values(layer, seen, lm.model.config) for layer in lm.taps.layers if layer.has_heads]
        told = f"first token's z=its value, {why}"
        checks.append(SelfCheck.of("values identity", _worst(values), of_weights, told))
    inputs = [_mlp_input(layer, seen) for layer in lm.taps.layers]
    checks.append(SelfCheck.of("inputs identity", _worst(inputs), limit, f"normed stream=MLP's input, {why}"))
    last = seen["resid_post", lm.taps.n_layers - 1]
    normed = lm.taps.final_norm(last)
    logits = lm.taps.logits(normed.to(lm.taps.unembedding.weight.device)).to(output.logits.device)
    value = _relative(logits.float() - output.logits.float(), output.logits)
    checks.append(SelfCheck.of("logits identity", value, limit, f"unembedded final norm=logits, {why}"))
    return checks


@torch.no_grad()
def check_packed(lm: _Loaded, token_ids: Tensor) -> SelfCheck:
    """Two prompts laid end to end against each one alone: what live patching relies on.

    Args:
        token_ids: (tokens,), cut in two.

    Returns:
        "packed identity", the worst token's ‖difference‖ of the decoder's output relative to the output.

    Raises:
        PatchError: the attention asks for something that packed tokens don't have.
    """
    tokens = token_ids.to(lm.device)
    parts = [part[None] for part in tokens.tensor_split([len(tokens) // 3])]
    alone = torch.cat([lm.taps.decoder(input_ids=part, use_cache=False)[0] for part in parts], dim=1)
    steps = torch.cat([torch.arange(part.shape[1]) for part in parts]).to(lm.device)
    with packed_attention(configured_modules(lm.model), PackedRun([part.shape[1] for part in parts])):
        packed = lm.taps.decoder(input_ids=tokens[None], position_ids=steps[None], use_cache=False)[0]
    value = _relative(packed.float() - alone.float(), alone)
    why = f"worst token, relative to the output; limit for {lm.dtype}".replace("torch.", "")
    return SelfCheck.of("packed identity", value, LIMITS[lm.dtype], f"prompts end to end=each alone, {why}")


def overflow_advice(dtype: torch.dtype) -> str:
    """What to do about activations that are not finite."""
    if dtype == torch.float16:
        return 'float16 ends at 65504, which activations exceed: set dtype = "bfloat16" or "float32".'
    return "check that the weights are those that the model was trained with, and what was added to them."


def _check_overflow(lm: _Loaded, seen: Recording, logits: Tensor) -> None:
    """ModelError naming the first block whose activations are not finite."""
    for index in range(lm.taps.n_layers):
        for part in ("resid_pre", "head_z", "attn_out", "mlp_out", "resid_post"):
            if (part, index) in seen and not bool(torch.isfinite(seen[part, index]).all()):
                raise _overflow(lm, f"{part} of block {index}")
    if not bool(torch.isfinite(logits).all()):
        raise _overflow(lm, "the logits")


def _overflow(lm: _Loaded, where: str) -> ModelError:
    dtype = str(lm.dtype).removeprefix("torch.")
    return ModelError(
        f"The model {lm.name!r} gives numbers that are not finite, from {where} on.",
        expected=f"finite activations in {dtype}",
        given="NaN or infinity on a probe of random tokens",
        next_step=overflow_advice(lm.dtype),
    )


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
        if layer.attn_post_norm or not layer.has_heads:
            continue
        attn_out = seen["attn_out", layer.index].float()
        total = sum_of_heads(layer, seen["head_z", layer.index]).to(attn_out.device)
        yield _relative(total - attn_out, attn_out)


def _values(layer: LayerTaps, seen: Recording, config: Any) -> float:
    """How far the first token's z is from its value; with sinks from a multiple of it, each head's own."""
    stream, z = seen["resid_pre", layer.index][:, :1], seen["head_z", layer.index][:, :1].float()
    value = layer.values(stream if layer.input_norm is None else layer.input_norm(stream))
    clip = getattr(config.get_text_config(), "clip_qkv", None)
    value = value if clip is None else value.clamp(-clip, clip)
    own = value.repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=2).to(z.device)
    if layer.family.z == "sunk":
        mixed = z.unflatten(-1, own.shape[-2:])
        own = own * ((mixed * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True)).clamp(0, 1)
    return _relative(own.flatten(2) - z, z)


def _mlp_input(layer: LayerTaps, seen: Recording) -> float:
    given, stream = seen["mlp_in", layer.index], seen["resid_pre", layer.index]
    if not layer.parallel:
        stream = stream + seen["attn_out", layer.index].to(stream.device)
    normed = stream if layer.mlp_norm is None else layer.mlp_norm(stream)
    return _relative(normed.to(given.device).float() - given.float(), given)


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
