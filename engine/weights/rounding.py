"""How much of a difference of two rounded weight tensors rounding alone could be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.models.tensor_parts import in_parts

__all__ = ["narrowest", "rounding_norm", "unit"]

NARROW = (torch.bfloat16, torch.float16)


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff: half the distance from 1 to the next number (bfloat16: 2⁻⁸)."""
    return torch.finfo(dtype).eps / 2


def narrowest(values: Tensor) -> torch.dtype:
    """The dtype that a tensor was rounded to: its own, or a narrower one that holds it exactly.

    A bfloat16 checkpoint loaded in float32 still has bfloat16's rounding in it.
    """
    for dtype in NARROW:
        if values.dtype == dtype:
            return dtype
        if all(torch.equal(part.to(dtype).to(part.dtype), part) for part in in_parts(values)):
            return dtype
    return values.dtype


def rounding_norm(values: Tensor) -> float:
    """Expected Frobenius norm of what rounding to its dtype left in a tensor: √(Σ ulp(w)²/12).

    A number rounded to the nearest is off by something uniform in ±ulp/2, whose variance is ulp²/12, and an
    error in one entry says nothing about another's. ulp(w) = eps · 2^⌊log₂|w|⌋, and 0 at 0.
    """
    eps = torch.tensor(torch.finfo(narrowest(values)).eps)
    total = 0.0
    for part in in_parts(values.detach()):
        ulp = torch.ldexp(eps, torch.frexp(part.float())[1].float() - 1)
        ulp = torch.where(part == 0, torch.zeros_like(ulp), ulp)
        total += float(ulp.double().square().sum())
    return math.sqrt(total / 12.0)
