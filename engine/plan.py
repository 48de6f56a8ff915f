"""What a capture will cost, before any weight is loaded: forward passes, bytes, memory, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.batching import batches, padded_tokens, units
from engine.model import resolve_device
from engine.pieces import gate_weight
from engine.positions import Positions
from engine.sites import ModelTaps, states_of
from engine.study import CaptureSpec, ModelSpec

__all__ = ["ModelPlan", "matmul_rate", "plan_model"]

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
        seconds: flops over the measured matrix-product rate of the device; without loading and writing.
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
        plan = batches(sizes, capture.batch_tokens)
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
        gram_bytes=pooled * n**2 * 4 * _stored_sites(shape, capture),
        piece_bytes=shape.n_layers * (attention * size + kernels + gates) + shape.vocab * shape.d * size,
        seconds=flops / matmul_rate(resolve_device(spec.device), getattr(torch, spec.dtype)),
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product, the better of three."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def _stored_sites(taps: ModelTaps, capture: CaptureSpec) -> int:
    blocks = capture.blocks(taps.n_layers)
    return sum(len(states_of(blocks)) if c == "resid" else len(blocks) for c in capture.components)


def _stored_width(taps: ModelTaps, capture: CaptureSpec) -> int:
    """Numbers stored per row: all sites' widths together."""
    blocks = capture.blocks(taps.n_layers)
    width = {"resid": len(states_of(blocks)) * taps.d, "head_z": len(blocks) * taps.z_width}
    return sum(width.get(component, len(blocks) * taps.d) for component in capture.components)
