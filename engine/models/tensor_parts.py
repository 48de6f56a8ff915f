"""Large tensors in parts, so that what is computed of them takes little memory beside them."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["PART", "by_rows", "in_parts", "norm_of"]

PART = 1 << 22
"""Numbers in a part: 16 MB in float32."""


def in_parts(values: Tensor) -> tuple[Tensor, ...]:
    """All numbers of a tensor in order, as flat parts of at most `PART`; one part for an empty tensor."""
    return values.reshape(-1).split(PART)


def by_rows(matrix: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """A matrix cut between rows, about `PART` numbers each, one row at least.

    Args:
        width: numbers that a row counts for; default: its own. Two matrices of as many rows are cut alike
            with the same width.
    """
    return matrix.split(max(1, PART // max(1, matrix.shape[-1] if width is None else width)))


def norm_of(values: Tensor) -> float:
    """Euclidean norm of all numbers, summed in float64 on the CPU: no square of a float32 overflows there."""
    parts = in_parts(values.detach())
    return math.sqrt(math.fsum(float(part.cpu().double().square().sum()) for part in parts))
