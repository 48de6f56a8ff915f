"""Matrices of low rank as two factors: found in a matrix, or made canonical from given ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.models.tensor_parts import by_rows, norm_of

__all__ = ["MAX_RANK", "TOLERANCE", "LowRank", "canonical", "low_rank_factors", "singular_values"]

MAX_RANK = 64
"""Ranks found above this are called dense: factors would save little. Given factors may have any rank."""

TOLERANCE = 1e-3
"""Relative Frobenius error up to which found factors stand for a matrix, unless rounding explains less."""

LARGE = 1e9
"""Numbers above this are scaled before products of them are taken in float32."""

CUT = 1e-7
"""Singular values of a product of float32 factors below this share of the largest are rounding of zero."""


@dataclass(frozen=True)
class LowRank:
    """left (out, rank) @ right (rank, in), in the precision that they were given in."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.left.shape[0], self.right.shape[1]

    @property
    def smaller(self) -> bool:
        """Whether two factors take less room than the product."""
        return self.left.numel() + self.right.numel() < self.shape[0] * self.shape[1]

    def product(self) -> Tensor:
        """The matrix in float64, on the CPU."""
        return self.left.cpu().double() @ self.right.cpu().double()

    def bound(self) -> float:
        """‖ |left| |right| ‖_F, what rounding of the factors and of their product is relative to."""
        wide = by_rows(self.left.cpu().float().abs(), self.right.shape[1])
        right = self.right.cpu().float().abs()
        return math.hypot(*(norm_of(part @ right) for part in wide))

    def minus(self, other: LowRank) -> LowRank:
        """The difference, its rank at most the sum of the two."""
        sides = [side.cpu().double() for side in (self.left, other.left, self.right, other.right)]
        return LowRank(torch.cat([sides[0], -sides[1]], dim=1), torch.cat([sides[2], sides[3]]))


def canonical(matrix: LowRank, floor: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A product of two factors as singular vectors and values, without multiplying it out.

    left = Q_l R_l and rightᵀ = Q_r R_r give left·right = Q_l (R_l R_rᵀ) Q_rᵀ, so an SVD of the small core is
    enough. All in float64.

    Args:
        floor: directions with singular values up to this are not known and left out.

    Returns:
        left (out, rank) with σ on its columns, right (rank, in) with orthonormal rows, σ (rank,) descending,
        float32; and the norm of what was left out. The rank is that of the product: 0 where a factor is zero.
    """
    basis_l, core_l = torch.linalg.qr(matrix.left.cpu().double())
    basis_r, core_r = torch.linalg.qr(matrix.right.cpu().double().T)
    u, s, vt = torch.linalg.svd(core_l @ core_r.T, full_matrices=False)
    rank = int((s > max(CUT * float(s.max()), floor)).sum())
    sides = (basis_l @ u[:, :rank]) * s[:rank], vt[:rank] @ basis_r.T
    left, right = (np.ascontiguousarray(side.float().numpy()) for side in sides)
    return left, right, s[:rank].float().numpy(), float(torch.linalg.norm(s[rank:]))


def low_rank_factors(
    delta: Tensor, max_rank: int = MAX_RANK, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, float] | None:
    """Factors of a low-rank matrix by a randomised range finder (Halko, Martinsson & Tropp 2011).

    One pass of `max_rank` + 8 Gaussian probes and one power iteration span the range exactly when the
    rank is smaller than that; the residual is then measured, not assumed.

    Args:
        delta: float32 (out, in).

    Returns:
        left (out, rank), right (rank, in), relative Frobenius error; None when more than `max_rank`
        directions are needed to bring that error down to `tolerance`.
    """
    largest = float(delta.abs().max())
    if largest > LARGE:  # a power of two changes no digit
        scale = 2.0 ** -math.floor(math.log2(largest))
        found = low_rank_factors(delta * scale, max_rank, tolerance)
        if found is None or not bool(torch.isfinite(found[0] / scale).all()):
            return None
        return found[0] / scale, found[1], found[2]
    probes = min(max_rank + 8, *delta.shape)
    generator = torch.Generator(device="cpu").manual_seed(0)
    omega = torch.randn(delta.shape[1], probes, generator=generator).to(delta)
    basis = torch.linalg.qr(delta @ omega).Q
    basis = torch.linalg.qr(delta @ (delta.T @ basis)).Q
    u, s, vt = torch.linalg.svd(basis.T @ delta, full_matrices=False)
    total, inside = norm_of(delta), basis.T @ delta
    pieces = zip(by_rows(delta), by_rows(basis, delta.shape[1]), strict=True)
    outside = math.hypot(*(norm_of(part - own @ inside) for part, own in pieces))
    tail = torch.flip(torch.cumsum(torch.flip(s.cpu().double() ** 2, [0]), 0), [0])
    errors = torch.sqrt(torch.cat([tail, tail.new_zeros(1)]) + outside**2) / total
    rank = int((errors > tolerance).sum())
    if rank > min(max_rank, len(s)):
        return None
    left = (basis @ u[:, :rank]) * s[:rank]
    return left, vt[:rank], float(errors[rank])


def singular_values(delta: Tensor) -> np.ndarray:
    """All singular values, descending, float32, from the float64 Gram of the smaller side.

    Values below about 1e-8 of the largest are not resolved.
    """
    found = delta.cpu() if delta.device.type == "mps" else delta  # MPS has no float64
    tall = found if found.shape[0] >= found.shape[1] else found.T
    size = tall.shape[1]
    gram = torch.zeros(size, size, dtype=torch.float64, device=tall.device)
    for part in by_rows(tall):
        exact = part.double()
        gram += exact.T @ exact
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)
    return np.asarray(values.float().cpu().numpy())
