"""Half-precision products on processors that have no instructions for them.

There torch multiplies bfloat16 and float16 matrices one number at a time, eight times slower than float32
ones. So the linear layers of a model in such a dtype convert weight and input to float32 as they are needed,
multiply, and round the result once: sums in float32, one rounding at the end, as processors with the
instructions do it. Nothing but the product being computed is kept in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

__all__ = ["linear", "slow", "widen"]

FEWEST_ROWS = 8
"""Products of fewer rows are bound by reading the weight, which converting it only adds to."""
MOST_NUMBERS = 2**24
"""Numbers of a weight that are converted at once, 64 MB in float32: an unembedding goes in parts."""


def slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of this dtype lack instructions here; False where torch can't tell."""
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type != "cpu" or dtype not in asked:
        return False
    supported: Callable[[], bool] | None = getattr(torch.ops.mkldnn, asked[dtype], None)
    return supported is not None and not supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in the weight's dtype, x (..., in), weight (out, in): by way of float32 where that
    is faster."""
    if not _pays(x, weight):
        return functional.linear(x, weight, bias)
    wide, rows = x.float(), max(1, MOST_NUMBERS // weight.shape[1])
    parts = [
        functional.linear(wide, part.float(), None if bias is None else bias[start : start + rows].float())
        for start in range(0, len(weight), rows)
        for part in (weight[start : start + rows],)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)


def widen(model: nn.Module) -> None:
    """Lets the linear layers of a model compute as `linear` does, where their dtype is slow on their device.

    Their weights, types and hooks stay as they are: a layer's `forward` becomes an attribute of the instance.
    Layers that have such an attribute already (placed by `device_map`, say) are left alone.
    """
    for layer in model.modules():
        if type(layer) in (nn.Linear, Conv1D) and "forward" not in layer.__dict__:
            weight: Any = layer.weight
            if slow(weight.dtype, weight.device):
                layer.forward = MethodType(_forward, layer)


def _forward(self: Any, x: Tensor) -> Tensor:
    weight = self.weight.T if type(self) is Conv1D else self.weight
    return linear(x, weight, self.bias)


def _pays(x: Tensor, weight: Tensor) -> bool:
    same = x.dtype == weight.dtype
    return same and x.numel() >= FEWEST_ROWS * x.shape[-1] and slow(weight.dtype, weight.device)
