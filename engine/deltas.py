"""Weight differences between two models of one architecture, kept factored where they are low-rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["WeightDelta", "low_rank_factors", "weight_deltas"]

MAX_RANK = 64
"""Ranks above this are called dense: factors would save little."""

TOLERANCE = 1e-3
"""Relative Frobenius error up to which factors stand for a delta. Adapters merged in float32 leave
rounding of the sum, about 6e-8·‖W‖/‖ΔW‖, which stays below this for every delta larger than 1e-4·‖W‖."""


@dataclass(frozen=True)
class WeightDelta:
    """What one tensor changed by, tuned − base.

    Attributes:
        name: parameter name in the Hugging Face model.
        shape: of the parameter.
        norm: ‖ΔW‖_F. relative: ‖ΔW‖_F / ‖W_base‖_F.
        rank: numerical rank, or None where it exceeds `MAX_RANK` or the tensor is no matrix.
        error: ‖ΔW − left·right‖_F / ‖ΔW‖_F of the factors, NaN without factors.
        left, right: float32 factors (out, rank) and (rank, in) with ΔW ≈ left·right, or None.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    relative: float
    rank: int | None
    error: float
    left: np.ndarray | None = None
    right: np.ndarray | None = None


def low_rank_factors(delta: Tensor, max_rank: int = MAX_RANK) -> tuple[Tensor, Tensor, float] | None:
    """Factors of a low-rank matrix by a randomised range finder (Halko, Martinsson & Tropp 2011).

    One pass of `max_rank` + 8 Gaussian probes and one power iteration span the range exactly when the
    rank is smaller than that; the residual is then measured, not assumed.

    Args:
        delta: float32 (out, in).

    Returns:
        left (out, rank), right (rank, in), relative Frobenius error; None when more than `max_rank`
        directions are needed to bring that error under `TOLERANCE`.
    """
    probes = min(max_rank + 8, *delta.shape)
    generator = torch.Generator(device="cpu").manual_seed(0)
    omega = torch.randn(delta.shape[1], probes, generator=generator).to(delta)
    basis = torch.linalg.qr(delta @ omega).Q
    basis = torch.linalg.qr(delta @ (delta.T @ basis)).Q
    u, s, vt = torch.linalg.svd(basis.T @ delta, full_matrices=False)
    total = float(torch.linalg.norm(delta))
    outside = float(torch.linalg.norm(delta - basis @ (basis.T @ delta)))
    tail = torch.flip(torch.cumsum(torch.flip(s.double() ** 2, [0]), 0), [0])
    errors = torch.sqrt(torch.cat([tail, tail.new_zeros(1)]) + outside**2) / total
    rank = int((errors > TOLERANCE).sum())
    if rank > min(max_rank, len(s)):
        return None
    left = (basis @ u[:, :rank]) * s[:rank]
    return left, vt[:rank], float(errors[rank])


def weight_deltas(base: nn.Module, tuned: nn.Module) -> Iterator[WeightDelta]:
    """Every parameter that differs between two models, in the order of `base`.

    Parameters that only one model has, or that differ in shape (a resized vocabulary), have no
    difference to speak of and are left out; compare the names if that matters.
    """
    others = dict(tuned.named_parameters())
    for name, parameter in base.named_parameters():
        other = others.get(name)
        if other is None or other.shape != parameter.shape or _same(parameter, other):
            continue
        weight = parameter.detach().float()
        delta = other.detach().to(weight) - weight
        norm = float(torch.linalg.norm(delta))
        relative = norm / max(float(torch.linalg.norm(weight)), 1e-30)
        factors = low_rank_factors(delta) if delta.ndim == 2 and min(delta.shape) > 1 else None
        if factors is None:
            yield WeightDelta(name, tuple(delta.shape), norm, relative, None, float("nan"))
        else:
            left, right, error = factors
            yield WeightDelta(
                name,
                tuple(delta.shape),
                norm,
                relative,
                left.shape[1],
                error,
                left.cpu().numpy(),
                right.contiguous().cpu().numpy(),
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in float32, so that a narrower dtype on one side hides no difference."""
    return torch.equal(a.detach().float(), b.detach().to(a.device).float())
