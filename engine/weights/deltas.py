"""Weight differences between models of one architecture, kept factored where they are low-rank.

Where a model is a base with a LoRA adapter merged into it, the difference is what the adapter says, in
its own precision and rank; what rounding the merged weights added is measured beside it. Elsewhere it is the
difference of the stored weights, with what their rounding alone could make of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.geometry.z import effective_rank
from engine.models.low_rank import MAX_RANK, TOLERANCE, LowRank, canonical, low_rank_factors, singular_values
from engine.models.tensor_parts import by_rows, in_parts, norm_of
from engine.weights.kept import KeptWeights
from engine.weights.names import Names, matched, rows_shared
from engine.weights.rounding import rounding_norm, unit
from engine.weights.shared_rows import SharedRows

__all__ = [
    "WeightDelta",
    "difference",
    "random_like",
    "tensor_difference",
    "weight_deltas",
]

EXACT = 1e-6
"""The least error asked for: float32 products of this size round by about as much."""

GIVEN = 2.0**-23
"""Error of factors that were given: their rounding to float32, two times half a unit."""

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
        rounding: of a difference that an adapter's factors give: ‖W_merged − W − ΔW‖_F / ‖ΔW‖_F, what
            rounding the merged weights added to it. None for another.
        noise: of a difference of stored weights: the norm that rounding both to their dtype is expected to
            give where they were equal before, over ‖ΔW‖_F (see `engine.weights.rounding`). From 1 on the
            difference is not above rounding. None for one from factors.
        rows: of a matrix with a row per token, in another vocabulary than the base's: how many rows were
            compared, those of token strings in both. The others are zero in ΔW. None where all were.
        tuned: ‖W_tuned‖_F, of the compared rows; None for a contrast.
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
    rounding: float | None = None
    noise: float | None = None
    rows: int | None = None
    tuned: float | None = None

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


def weight_deltas(
    base: nn.Module | Mapping[str, Tensor],
    tuned: nn.Module,
    *,
    keep: bool = True,
    factors: Mapping[str, LowRank] | None = None,
    vocabulary: Mapping[str, int] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[WeightDelta]:
    """Every parameter that differs between two models, in the order of `base`.

    Parameters without a counterpart are left out; `unmatched` names them. Low-rank differences are kept as
    factors: of rank up to `MAX_RANK`, where factors are smaller than the matrix, to an error that the
    rounding of the weights explains, and never above `TOLERANCE`. Other ones are kept dense.

    Args:
        base: the model, or its parameters by name; of the latter one is held at a time.
        keep: False gives norms only.
        factors: of what was merged into `tuned`, by name. They are taken at their word where the two
            models' weights agree with them up to rounding, whatever their rank.
        vocabulary: of `tuned`, string -> row. Where `base` knows its own too (`KeptWeights`), embedding and
            unembedding are compared on the token strings that both have.
        advance: called after each parameter of `base`, when what is made of it is used.

    Raises:
        ModelError: a weight of either model is not finite.
    """
    ours = dict(base.named_parameters()) if isinstance(base, nn.Module) else base
    others, own = dict(tuned.named_parameters()), dict(factors or {})
    names: Iterable[str] = ours
    rows: dict[str, SharedRows | None] = {}
    if isinstance(base, nn.Module | KeptWeights):
        one = Names(base) if isinstance(base, nn.Module) else base.names
        other = Names(tuned, vocabulary)
        place = matched(one, other)
        rows = {name: rows_shared(one, other, name, own_name) for own_name, name in place.items()}
        names, others = one.compared(other), {name: others[theirs] for theirs, name in place.items()}
        own = {place.get(name, name): found for name, found in own.items()}
    for name in names:
        changed = others.get(name)
        if changed is not None:
            value = ours[name].to(changed.device).detach()
            found = _compared(name, value, changed.detach(), rows.get(name), keep, own.get(name))
            if found is not None:
                yield found
        advance()


def _compared(
    name: str, base: Tensor, tuned: Tensor, rows: SharedRows | None, keep: bool, factors: LowRank | None
) -> WeightDelta | None:
    """The difference of two tensors, or of the rows that they share; None where there is none."""
    if rows is None:
        return _found(name, base, tuned, keep, factors) if base.shape == tuned.shape else None
    if not len(rows.base):
        return None
    some = torch.from_numpy(rows.tuned)
    lora = None
    if factors is not None and factors.left.shape[0] == len(tuned):
        lora = LowRank(factors.left[some.to(factors.left.device)], factors.right)
    mine = base[torch.from_numpy(rows.base).to(base.device)]
    found = _found(name, mine, tuned[some.to(tuned.device)], keep, lora)
    if found is None:
        return None
    left, dense = (
        None if values is None else _spread(values, rows.base, len(base))
        for values in (found.left, found.dense)
    )
    return replace(found, shape=tuple(base.shape), left=left, dense=dense, rows=len(rows.base))


def _spread(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Values at their rows of an array with `count` of them, zero elsewhere."""
    whole = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    whole[rows] = values
    return whole


def _found(name: str, base: Tensor, tuned: Tensor, keep: bool, factors: LowRank | None) -> WeightDelta | None:
    found = None if factors is None or not keep else _given(name, base, tuned, factors)
    return _stored(name, base, tuned, keep) if found is None and not _same(base, tuned) else found


def _given(name: str, base: Tensor, merged: Tensor, factors: LowRank) -> WeightDelta | None:
    """The difference that factors give; None where they are zero, or don't say what the weights do."""
    left, right, sigma, _ = canonical(factors)
    norm = float(np.linalg.norm(sigma.astype(np.float64)))
    if norm == 0.0 or not np.isfinite(norm):
        return None
    off = math.hypot(
        *(
            norm_of(own.float().cpu() - old.float().cpu() - torch.from_numpy(some @ right))
            for own, old, some in zip(*map(by_rows, (merged, base)), _like(left, base), strict=True)
        )
    )
    # peft rounds both factors, their product, its scaling and the sum; products of `rank` terms add up
    steps = 4 + factors.left.shape[1] * (merged.dtype == torch.float32)
    size, tuned = norm_of(base), norm_of(merged)
    bound = unit(merged.dtype) * (tuned + steps * factors.bound())
    if not off <= 2 * bound:
        return None
    return WeightDelta(
        name,
        tuple(base.shape),
        norm,
        norm / max(size, 1e-30),
        len(sigma) if factors.smaller else None,
        GIVEN,
        left=left if factors.smaller else None,
        right=right if factors.smaller else None,
        dense=None if factors.smaller else left @ right,
        spectrum=sigma,
        rounding=off / norm,
        tuned=tuned,
    )


def _like(left: np.ndarray, tensor: Tensor) -> list[np.ndarray]:
    """Rows of a factor, cut where `by_rows` cuts the tensor."""
    return np.split(left, np.cumsum([len(part) for part in by_rows(tensor)])[:-1])


def _stored(name: str, base: Tensor, tuned: Tensor, keep: bool) -> WeightDelta:
    """The difference of two stored tensors, with what their rounding could make of it."""
    delta = tuned.to(torch.float32, copy=True).sub_(base)
    norm, size = norm_of(delta), norm_of(base)
    if not np.isfinite(norm):
        raise ModelError(
            f"The difference of {name} is not finite.",
            expected="finite weights in both models, and a difference that float32 holds",
            given="NaN or infinity",
            next_step="get the checkpoint again; float16 ends at 65504, so try float32 or bfloat16.",
        )
    noise = float(np.hypot(rounding_norm(base), rounding_norm(tuned)))
    bare = WeightDelta(
        name,
        tuple(delta.shape),
        norm,
        norm / max(size, 1e-30),
        None,
        float("nan"),
        half=base.dtype == tuned.dtype == torch.bfloat16,
        noise=noise / norm,
        tuned=norm_of(tuned),
    )
    return _kept(bare, delta, size) if keep and delta.ndim <= 2 else bare


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
        spectrum=torch.linalg.norm(left.cpu().double(), dim=0).float().numpy(),
    )


def _dense(bare: WeightDelta, delta: Tensor) -> WeightDelta:
    lost = math.hypot(*(norm_of(part - part.bfloat16().float()) for part in in_parts(delta)))
    error = lost / bare.norm if bare.half else 0.0
    small = bare.norm < float(np.finfo(np.float32).max)  # as no singular value is larger
    spectrum = singular_values(delta) if delta.ndim == 2 and small else None
    return replace(bare, error=error, dense=delta.cpu().numpy(), spectrum=spectrum)


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
    size = plus.norm / max(plus.relative, 1e-30)
    left_out = plus.error * plus.norm + minus.error * minus.norm
    noise = None
    if plus.noise is not None or minus.noise is not None:
        noise = float(np.hypot((plus.noise or 0.0) * plus.norm, (minus.noise or 0.0) * minus.norm))
    joined = _joined(plus, minus)
    if joined is not None:
        floor = left_out + GIVEN * (plus.norm + minus.norm)
        left, right, sigma, lost = canonical(joined, floor)
        norm = float(np.linalg.norm(sigma.astype(np.float64)))
        if norm == 0.0:
            return None
        kept = replace(_bare(plus), rank=len(sigma), left=left, right=right, spectrum=sigma)
        kept = replace(kept, norm=norm, relative=norm / size, error=lost / norm, half=False)
    else:
        delta = torch.from_numpy(plus.matrix() - minus.matrix())
        norm = norm_of(delta)
        if norm <= left_out:
            return None
        dense = [side.half for side in (plus, minus) if side.left is None]
        half = bool(dense) and all(dense)
        kept = _kept(replace(_bare(plus), norm=norm, relative=norm / size, half=half), delta, size)
    more = left_out / norm
    return replace(kept, error=kept.error + more, noise=None if noise is None else noise / norm)


def _joined(plus: WeightDelta, minus: WeightDelta) -> LowRank | None:
    """Both sides' factors as one product, where both have factors and together they are still smaller."""
    if plus.left is None or plus.right is None or minus.left is None or minus.right is None:
        return None
    one, two = (
        LowRank(torch.from_numpy(d.left), torch.from_numpy(d.right))
        for d in (plus, minus)
        if d.left is not None and d.right is not None
    )
    found = one.minus(two)
    return found if found.smaller else None


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
    nothing: Mapping[str, None] = dict.fromkeys(
        ("rank", "left", "right", "dense", "spectrum", "rounding", "noise", "tuned")
    )
    return replace(delta, **nothing)  # type: ignore[arg-type]


def _scaled(delta: WeightDelta, factor: float) -> WeightDelta:
    scaled = {
        side: None if values is None else (np.float32(factor) * values)
        for side, values in (("left", delta.left), ("dense", delta.dense))
    }
    return replace(delta, left=scaled["left"], dense=scaled["dense"])


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal in float32, so that a narrower dtype on one side hides no difference."""
    pairs = zip(in_parts(a.detach()), in_parts(b.detach().to(a.device)), strict=True)
    return all(torch.equal(one.float(), other.float()) for one, other in pairs)
