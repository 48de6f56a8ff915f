"""Weight differences between models of one architecture, kept factored where they are low-rank."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from engine.analysis.subspace import effective_rank
from engine.errors import ModelError

__all__ = [
    "WeightDelta",
    "difference",
    "low_rank_factors",
    "random_like",
    "tensor_difference",
    "unmatched",
    "weight_deltas",
]

MAX_RANK = 64
"""Ranks above this are called dense: factors would save little."""

TOLERANCE = 1e-3
"""Relative Frobenius error up to which factors stand for a delta, unless rounding explains less."""

EXACT = 1e-6
"""The least error asked for: float32 products of this size round by about as much."""

IN_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class WeightDelta:
    """What one tensor changed by, tuned − base.

    Attributes:
        name: parameter name in the Hugging Face model.
        shape: of the parameter.
        norm: ‖ΔW‖_F. relative: ‖ΔW‖_F / ‖W_base‖_F.
        rank: numerical rank where the delta is kept factored, else None.
        error: ‖ΔW − what is kept‖_F / ‖ΔW‖_F, NaN where nothing is kept.
        left, right: float32 factors (out, rank) and (rank, in) with ΔW ≈ left·right, or None.
        dense: float32 ΔW where it has no factors, or None.
        spectrum: singular values, float32, descending; of the factors where there are any. None for a
            tensor that is no matrix.
        half: bfloat16 is precise enough for `dense`, because the weights themselves are; `error` says by how
            much.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    relative: float
    rank: int | None
    error: float
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    dense: np.ndarray | None = None
    spectrum: np.ndarray | None = None
    half: bool = False

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of σ/Σσ (Roy & Vetterli 2007), None for a tensor that is no matrix."""
        return None if self.spectrum is None else float(effective_rank(self.spectrum))

    @property
    def layer(self) -> int | None:
        """The block it belongs to, None outside the blocks."""
        found = IN_BLOCK.search(self.name)
        return None if found is None else int(found[1])

    def matrix(self) -> np.ndarray:
        """ΔW as one float32 array; ModelError where nothing of it was kept."""
        if self.left is not None and self.right is not None:
            return np.asarray(self.left @ self.right)
        if self.dense is None:
            raise ModelError(
                f"The difference of {self.name} was not kept.",
                expected="factors or a dense difference",
                given=f"its norm, {self.norm:.3g}",
                next_step="compare models of one architecture, with the same tensors.",
            )
        return self.dense


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
    probes = min(max_rank + 8, *delta.shape)
    generator = torch.Generator(device="cpu").manual_seed(0)
    omega = torch.randn(delta.shape[1], probes, generator=generator).to(delta)
    basis = torch.linalg.qr(delta @ omega).Q
    basis = torch.linalg.qr(delta @ (delta.T @ basis)).Q
    u, s, vt = torch.linalg.svd(basis.T @ delta, full_matrices=False)
    total = float(torch.linalg.norm(delta))
    outside = float(torch.linalg.norm(delta - basis @ (basis.T @ delta)))
    tail = torch.flip(torch.cumsum(torch.flip(s.cpu().double() ** 2, [0]), 0), [0])
    errors = torch.sqrt(torch.cat([tail, tail.new_zeros(1)]) + outside**2) / total
    rank = int((errors > tolerance).sum())
    if rank > min(max_rank, len(s)):
        return None
    left = (basis @ u[:, :rank]) * s[:rank]
    return left, vt[:rank], float(errors[rank])


def unmatched(base: nn.Module, tuned: nn.Module) -> dict[str, str]:
    """Parameters that have no counterpart of the same shape in the other model: name -> what is wrong.

    A parameter that one model shares under two names and the other doesn't counts as unmatched too.
    """
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    aliases = {name for name, _ in base.named_parameters(remove_duplicate=False)} - set(ours)
    found = {}
    for name, parameter in ours.items():
        if name not in theirs:
            found[name] = "missing"
        elif theirs[name].shape != parameter.shape:
            found[name] = f"shape {tuple(theirs[name].shape)} instead of {tuple(parameter.shape)}"
    for name in theirs:
        if name not in ours:
            found[name] = "tied to another one in the first model" if name in aliases else "additional"
    return found


def weight_deltas(base: nn.Module, tuned: nn.Module, *, keep: bool = True) -> Iterator[WeightDelta]:
    """Every parameter that differs between two models, in the order of `base`.

    Parameters without a counterpart are left out; `unmatched` names them. Low-rank differences are kept as
    factors: of rank up to `MAX_RANK`, where factors are smaller than the matrix, to an error that the
    rounding of the weights explains, and never above `TOLERANCE`. Other ones are kept dense.

    Args:
        keep: False gives norms only.

    Raises:
        ModelError: a weight of either model is not finite.
    """
    others = dict(tuned.named_parameters())
    for name, parameter in base.named_parameters():
        other = others.get(name)
        if other is None or other.shape != parameter.shape or _same(parameter, other):
            continue
        weight = parameter.detach().float()
        delta = other.detach().to(weight) - weight
        norm, size = float(torch.linalg.norm(delta)), float(torch.linalg.norm(weight))
        if not np.isfinite(norm):
            raise ModelError(
                f"The difference of {name} is not finite.",
                expected="finite weights in both models",
                given="NaN or infinity",
                next_step="get the checkpoint again; float16 ends at 65504, so try float32 or bfloat16.",
            )
        half = parameter.dtype == other.dtype == torch.bfloat16
        bare = WeightDelta(
            name, tuple(delta.shape), norm, norm / max(size, 1e-30), None, float("nan"), half=half
        )
        yield _kept(bare, delta, size) if keep and delta.ndim <= 2 else bare


def _kept(bare: WeightDelta, delta: Tensor, size: float) -> WeightDelta:
    """The delta with its values: factors, or dense with its spectrum."""
    rounding = 2.0**-23 * size / bare.norm  # twice the unit roundoff: of the sum, and of the difference
    tolerance = min(TOLERANCE, max(EXACT, rounding))
    most = min(MAX_RANK, (delta.numel() - 1) // sum(delta.shape)) if delta.ndim == 2 else 0
    factors = low_rank_factors(delta, most, tolerance) if most > 0 else None
    if factors is None:
        return _dense(bare, delta)
    left, right, error = factors
    return replace(
        bare,
        rank=left.shape[1],
        error=error,
        left=left.cpu().numpy(),
        right=right.contiguous().cpu().numpy(),
        spectrum=torch.linalg.norm(left, dim=0).cpu().numpy(),
    )


def _dense(bare: WeightDelta, delta: Tensor) -> WeightDelta:
    error = float(torch.linalg.norm(delta - delta.bfloat16().float())) / bare.norm if bare.half else 0.0
    spectrum = singular_values(delta) if delta.ndim == 2 else None
    return replace(bare, error=error, dense=delta.cpu().numpy(), spectrum=spectrum)


def singular_values(delta: Tensor) -> np.ndarray:
    """All singular values, descending, float32, from the float64 Gram of the smaller side.

    Values below about 1e-8 of the largest are not resolved.
    """
    exact = delta.cpu().double() if delta.device.type == "mps" else delta.double()  # MPS has no float64
    gram = exact @ exact.T if delta.shape[0] <= delta.shape[1] else exact.T @ exact
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)
    return np.asarray(values.float().cpu().numpy())


def difference(positive: Sequence[WeightDelta], negative: Sequence[WeightDelta]) -> list[WeightDelta]:
    """The contrast of two weight differences from one base: positive − negative, tensor by tensor.

    Tensors that neither changes are left out, see `tensor_difference`.

    Raises:
        ModelError: shapes differ, or a side's values were not kept.
    """
    plus, minus = {d.name: d for d in positive}, {d.name: d for d in negative}
    names = dict.fromkeys([*plus, *minus])
    found = (tensor_difference(plus.get(name), minus.get(name)) for name in names)
    return [delta for delta in found if delta is not None]


def tensor_difference(plus: WeightDelta | None, minus: WeightDelta | None) -> WeightDelta | None:
    """plus − minus for one tensor, None standing for no change; None where nothing is known to differ.

    Factored where its own rank is low, which is at most the sum of the two, and dense otherwise. `relative`
    keeps meaning: relative to the base's tensor. `error` is a bound that includes what both sides left out;
    a difference within that is none.

    Raises:
        ModelError: shapes differ, or a side's values were not kept.
    """
    if plus is None or minus is None:
        return plus if minus is None else _scaled(minus, -1.0)
    if plus.shape != minus.shape:
        raise ModelError(
            f"The two differences of {plus.name} have different shapes.",
            expected=plus.shape,
            given=minus.shape,
        )
    delta = torch.from_numpy(plus.matrix() - minus.matrix())
    norm, size = float(torch.linalg.norm(delta)), plus.norm / max(plus.relative, 1e-30)
    left_out = plus.error * plus.norm + minus.error * minus.norm
    if norm <= left_out:
        return None
    dense = [side.half for side in (plus, minus) if side.left is None]
    half = bool(dense) and all(dense)
    kept = _kept(replace(_bare(plus), norm=norm, relative=norm / size, half=half), delta, size)
    return replace(kept, error=kept.error + left_out / norm)


def random_like(deltas: Sequence[WeightDelta], seed: int) -> list[WeightDelta]:
    """Random differences as large as given ones: same tensors, norms, ranks and singular values of factors.

    Factors get uniformly random orthonormal sides; dense tensors become Gaussian noise of their norm.
    """
    rng = np.random.default_rng(seed)
    found = []
    for delta in deltas:
        if delta.left is not None and delta.right is not None and delta.rank:
            left, right = (
                np.linalg.qr(rng.normal(size=(side, delta.rank)))[0].astype(np.float32)
                for side in delta.shape
            )
            sigma = np.linalg.norm(delta.left, axis=0)
            found.append(replace(delta, left=left * sigma, right=np.ascontiguousarray(right.T)))
        else:
            noise = rng.standard_normal(delta.shape, dtype=np.float32)
            found.append(replace(delta, dense=noise * np.float32(delta.norm / np.linalg.norm(noise))))
    return found


def _bare(delta: WeightDelta) -> WeightDelta:
    nothing: Mapping[str, None] = dict.fromkeys(("rank", "left", "right", "dense", "spectrum"))
    return replace(delta, **nothing)  # type: ignore[arg-type]


def _scaled(delta: WeightDelta, factor: float) -> WeightDelta:
    scaled = {
        side: None if values is None else (np.float32(factor) * values)
        for side, values in (("left", delta.left), ("dense", delta.dense))
    }
    return replace(delta, left=scaled["left"], dense=scaled["dense"])


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in float32, so that a narrower dtype on one side hides no difference."""
    return torch.equal(a.detach().float(), b.detach().to(a.device).float())
