"""What a capture will cost, before any weight is loaded: forward passes, bytes, memory, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from engine.models.loading import resolve_device
from engine.models.pieces import gate_weight
from engine.models.sites import ModelTaps, states_of
from engine.passes.batching import batches, padded_tokens, units
from engine.prompts.positions import Positions
from engine.similarity.sampling import gram_bytes
from engine.study.capture_spec import CaptureSpec
from engine.study.study import ModelSpec

__all__ = ["BLOCK_SECONDS", "ModelPlan", "linear_rate", "pace", "plan_model"]

BLOCK_SECONDS = 2.5e-3
"""What a block of one pass costs whatever its size, at pace 1: calls, hooks, rows brought to the CPU."""
SMALL_CALLS, SMALL_SECONDS = 300, 2.0e-3
"""So many small operations, and what they take on the machine that constants of time were measured on."""
MEASURED_SECONDS = 0.12
"""A rate is measured no longer than this, but once at least."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelPlan:
    """The cost of capturing one model.

    Attributes:
        parameters: of the model, embedding included.
        forward_passes, tokens, padded: batches, real tokens, token slots with padding.
        flops: 2 × (parameters of the blocks) × padded tokens; attention scores left out.
        weight_bytes: memory of the loaded weights. batch_bytes: of the widest
            point of the largest batch (the MLP's two hidden products beside the stream).
        activation_bytes: stored activations before compression. gram_bytes: stored Grams.
        piece_bytes: weights kept for analyses (query/key factors, kernels, gates, unembedding).
        seconds: of the forward passes: flops over the measured rate of linear layers on the device, and what
            every block costs in any case.
    """

    name: str
    parameters: int
    forward_passes: int
    tokens: int
    padded: int
    flops: float
    weight_bytes: int
    batch_bytes: int
    activation_bytes: int
    gram_bytes: int
    piece_bytes: int
    seconds: float


def plan_model(
    name: str,
    shape: ModelTaps,
    spec: ModelSpec,
    capture: CaptureSpec,
    lengths: Sequence[int],
    positions: Mapping[str, Positions],
) -> ModelPlan:
    """Counts what capturing a study's prompts with one model takes.

    Args:
        shape: the model without weights, so that a 70B model is planned as quickly as a small one.
        lengths: tokens per prompt in capture order.
        positions: position name -> resolved positions.
    """
    passes = padded = 0
    for unit in units(len(lengths), capture.unit_prompts):
        sizes = [lengths[i] for i in unit]
        plan = batches(sizes, capture.batch_tokens, shape.rotary_switch)
        passes, padded = passes + len(plan), padded + padded_tokens(sizes, plan)
    parameters = sum(p.numel() for p in shape.model.parameters())
    flops = 2.0 * padded * sum(p.numel() for layer in shape.layers for p in layer.block.parameters())
    n = len(lengths)
    rows = sum(sum(map(len, p.indices)) if p.kind == "many" else n for p in positions.values())
    pooled = sum(p.kind != "many" for p in positions.values())
    widest = 2 * (getattr(shape.model.config, "intermediate_size", None) or 4 * shape.d) + 4 * shape.d
    size = BYTES[spec.dtype]
    attention = shape.d * shape.head_dim * (shape.n_heads + shape.n_kv_heads)
    kernels = 4 * shape.n_heads * shape.head_dim * (shape.d + 1)
    gated = any(gate_weight(layer) is not None for layer in shape.layers)
    gates = 4 * min(shape.n_kv_heads * shape.head_dim, shape.d) ** 2 if gated else 0
    return ModelPlan(
        name=name,
        parameters=parameters,
        forward_passes=passes,
        tokens=sum(lengths),
        padded=padded,
        flops=flops,
        weight_bytes=parameters * size,
        batch_bytes=max(capture.batch_tokens, *lengths) * widest * size,
        activation_bytes=rows * _stored_width(shape, capture) * BYTES[capture.dtype],
        gram_bytes=pooled * _gram_bytes(n, shape, capture),
        piece_bytes=shape.n_layers * (attention * size + kernels + gates) + shape.vocab * shape.d * size,
        seconds=flops / linear_rate(resolve_device(spec.device), getattr(torch, spec.dtype), shape.d)
        + passes * shape.n_layers * BLOCK_SECONDS * pace(),
    )


@lru_cache(maxsize=64)
def linear_rate(device: torch.device, dtype: torch.dtype, width: int, rows: int = 512) -> float:
    """Floating-point operations per second of a linear layer on so many rows, the best of a few.

    Measured once per process at the model's own width, up to 1024, which takes a fraction of a second also
    where a processor has no units for the dtype.
    """
    size, best = min(width, 1024), 0.0
    taken = _linear_seconds(device, dtype, rows, small := min(width, 128))
    while size > small and taken * (size / small) ** 2 > MEASURED_SECONDS / 6:
        size //= 2  # smaller ones where a processor is slow, so that there are several to choose from
    begun = time.perf_counter()
    while not best or time.perf_counter() - begun < MEASURED_SECONDS:
        best = max(best, 2.0 * rows * size**2 / _linear_seconds(device, dtype, rows, size))
    return best


@lru_cache(maxsize=1)
def pace() -> float:
    """What this processor takes for many small operations, in times of the one that constants are of.

    The best of a few tries, once per process, in some hundredths of a second.
    """
    return min(_small_seconds() for _ in range(12)) / SMALL_SECONDS


def _small_seconds() -> float:
    x = torch.ones(16, 128)
    with torch.inference_mode():
        start = time.perf_counter()
        for _ in range(SMALL_CALLS):
            x = functional.layer_norm(x, (128,)) + x
        return time.perf_counter() - start


def _linear_seconds(device: torch.device, dtype: torch.dtype, rows: int, size: int) -> float:
    """Of one linear layer of that size, after one that is not counted."""
    x, weight = (torch.randn(n, size, device=device).to(dtype) for n in (rows, size))
    with torch.inference_mode():
        functional.linear(x[:1], weight)
        start = time.perf_counter()
        float(functional.linear(x, weight)[0, 0])
        return time.perf_counter() - start


def _gram_bytes(n: int, taps: ModelTaps, capture: CaptureSpec) -> int:
    """Bytes of the Grams of one position."""
    blocks = capture.blocks(taps.n_layers)
    return sum(
        (len(states_of(blocks)) if c == "resid" else len(blocks))
        * gram_bytes(n, taps.z_width if c == "head_z" else taps.d, capture.similarity_prompts)
        for c in capture.components
    )


def _stored_width(taps: ModelTaps, capture: CaptureSpec) -> int:
    """Numbers stored per row: all sites' widths together."""
    blocks = capture.blocks(taps.n_layers)
    width = {"resid": len(states_of(blocks)) * taps.d, "head_z": len(blocks) * taps.z_width}
    return sum(width.get(component, len(blocks) * taps.d) for component in capture.components)
