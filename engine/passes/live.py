"""Linear layers that hold codes instead of weights, and run on them: what their weights are, unpacked.

Of bitsandbytes (4 and 8 bits) and FP8. A layer that computes with such codes gives what its unpacked weights
give, rounded as its method rounds; some methods quantise activations too.
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from engine.errors import ModelError

__all__ = ["holds_codes", "plain_weight", "runs_on_codes"]


def holds_codes(module: nn.Module) -> bool:
    """Whether a module's weight is packed: whole numbers, or floats of one byte."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return False
    return not weight.is_floating_point() or weight.element_size() == 1


def runs_on_codes(model: nn.Module) -> bool:
    """Whether any module of a model holds codes."""
    return any(map(holds_codes, model.modules()))


def plain_weight(module: nn.Module) -> Tensor:
    """A module's weight as a plain tensor, its own where it holds no codes.

    Raises:
        ModelError: codes of a method whose meaning isn't known here.
    """
    weight: Any = module.weight
    if not holds_codes(module):
        plain: Tensor = weight.detach()
        return plain
    if getattr(weight, "quant_state", None) is not None:
        return _four_bits(weight)
    state: Any = getattr(module, "state", None)
    codes = state if getattr(state, "SCB", None) is not None else weight
    if getattr(codes, "SCB", None) is not None:
        own = weight.data if codes.CB is None else codes.CB
        found: Tensor = own.float() * codes.SCB.float()[:, None] / 127
        return found
    scales: Any = getattr(module, "weight_scale_inv", None)
    if isinstance(scales, Tensor) and weight.is_floating_point():
        return _scaled(weight, scales.float(), getattr(module, "block_size", None))
    raise ModelError(
        f"The weights of a {type(module).__name__} can't be read: it holds codes.",
        expected="codes of bitsandbytes, or FP8 with weight_scale_inv",
        given=str(weight.dtype),
        next_step='leave out quantised = "live", so that the weights are unpacked.',
    )


def _four_bits(weight: Any) -> Tensor:
    """bitsandbytes' four bits; on processors with instructions for them it lays the codes out anew to run."""
    functional = import_module("bitsandbytes.functional")
    codes, state = weight.data, weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        back = functional._convert_weight_packed_for_cpu_inverse
        codes, state = back(codes, copy.deepcopy(state))  # which it changes
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found


def _scaled(codes: Tensor, scales: Tensor, block: Any) -> Tensor:
    """FP8 codes by their scales, one for the whole matrix or one a block."""
    if scales.numel() == 1:
        return codes.float() * scales
    rows, columns = block or (
        -(-size // count) for size, count in zip(codes.shape, scales.shape, strict=True)
    )
    spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return codes.float() * spread[: codes.shape[0], : codes.shape[1]]
