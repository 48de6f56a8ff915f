"""What of a layer's bases scoring needs, so that another k only takes fewer columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.stats.scales import ScaleNull, Scales, shares_of, spread
from engine.stats.uncertainty import energy_p_values, random_subspace_moments
from engine.subspaces.numbers.inputs import TENSORS
from engine.subspaces.numbers.linear import RANK_TOLERANCE
from engine.subspaces.numbers.workspace import MOMENTS, Moment, Workspace

Array = NDArray[np.float64]

TESTED = ("act", "combined")
"""Moments whose p-values are adjusted, and held against both nulls."""


@dataclass(frozen=True)
class Frame:
    """The directions of one layer that bases are held against.

    Attributes:
        d, layer: the model's width, the layer.
        rows: X, D's rows at unit length over √n (n, d). clean: (d, c) principal directions, clean stream.
        delta: (d, r) left singular vectors of the concatenated weight change.
        spectra: energies of the moments, descending; empty where there is no energy.
    """

    d: int
    layer: int
    rows: Array
    clean: Array
    delta: Array
    spectra: Mapping[str, Array]

    @classmethod
    def of(cls, inputs: Workspace, layer: int, clean: Array) -> tuple[Frame, Mapping[str, Moment]]:
        """The frame of a layer, and the moments that it doesn't keep."""
        moments = {which: inputs.moment(which, layer) for which in MOMENTS}
        delta = inputs.moment("concatenated", layer).vectors[:, : inputs.widest]
        spectra = {which: moment.energy for which, moment in moments.items()}
        return cls(inputs.d, layer, inputs.label(layer), clean, delta, spectra), moments

    def null(self, which: str, k: int) -> tuple[Array, Array]:
        """Mean and variance of a random subspace's energy fraction for every rank 0..k (NaN for rank 0)."""
        return null_moments(self.d, k, float((self.spectra[which] ** 2).sum()))

    def ceiling(self, which: str, k: int) -> Array:
        """The largest energy fraction that any subspace of rank 0..k has."""
        energy = self.spectra[which][:k]
        return np.concatenate([[0.0], np.cumsum(energy), np.full(k - len(energy), energy.sum())])


def null_moments(d: int, k: int, trace_of_square: float) -> tuple[Array, Array]:
    """Exact mean and variance of tr(BᵀSB), tr S = 1, for ranks 0..k."""
    of = [random_subspace_moments(d, rank, 1.0, trace_of_square) for rank in range(1, k + 1)]
    return np.array([np.nan, *(mean for mean, _ in of)]), np.array(
        [np.nan, *(variance for _, variance in of)]
    )


@dataclass
class Projections:
    """Bases of all candidates in a layer's frame; columns beyond a basis's rank are 0.

    Attributes:
        rank: (C,), −1 for a candidate that has no basis here.
        rows, clean, delta: products with the frame's, (C, n, w), (C, c, w), (C, r, w).
        energy: per tensor (C, w).
        scales: per moment of `TESTED`, the null that keeps the coordinates' scales: mean, variance and shape
            (3, C, w) of the first 1 … w columns.
    """

    rank: NDArray[np.int64]
    rows: Array
    clean: Array
    delta: Array
    energy: dict[str, Array]
    scales: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def empty(cls, frame: Frame, count: int, width: int) -> Projections:
        n, c, r = len(frame.rows), frame.clean.shape[1], frame.delta.shape[1]
        return cls(
            np.full(count, -1),
            np.zeros((count, n, width)),
            np.zeros((count, c, width)),
            np.zeros((count, r, width)),
            {name: np.zeros((count, width)) for name in TENSORS},
        )

    def narrowed(self, k: int) -> Projections:
        """The first k columns, as a copy."""
        return Projections(
            np.minimum(self.rank, k),
            self.rows[:, :, :k].copy(),
            self.clean[:, :, :k].copy(),
            self.delta[:, :, :k].copy(),
            {name: energy[:, :k].copy() for name, energy in self.energy.items()},
            {name: moments[:, :, :k].copy() for name, moments in self.scales.items()},
        )

    def put(
        self,
        frame: Frame,
        bases: Mapping[int, Array],
        energy: Mapping[str, Array],
        scales: Mapping[str, Scales],
    ) -> None:
        """Fills in bases by position.

        Args:
            energy: of their columns side by side, per tensor. scales: of the moments, see `scales_of`.
        """
        if not bases:
            return
        together = np.concatenate(list(bases.values()), axis=1)
        rows, clean, delta = frame.rows @ together, frame.clean.T @ together, frame.delta.T @ together
        nulls = scale_moments(scales, list(bases.values()))
        for name in nulls:
            self.scales.setdefault(name, np.zeros((3, *self.energy[TENSORS[0]].shape)))
        start = 0
        for index, basis in bases.items():
            rank = basis.shape[1]
            part = slice(start, start + rank)
            self.rank[index] = rank
            for own, of_all in ((self.rows, rows), (self.clean, clean), (self.delta, delta)):
                own[index] = 0.0
                own[index, :, :rank] = of_all[:, part]
            for name, own_energy in self.energy.items():
                own_energy[index] = 0.0
                own_energy[index, :rank] = energy[name][part]
            for name, found in nulls.items():
                self.scales[name][:, index] = 0.0
                self.scales[name][:, index, :rank] = found[:, part]
            start += rank


def scales_of(rows: Array, change: Mapping[str, Array]) -> dict[str, Scales]:
    """Scales of the moments of `TESTED` that have energy, in single precision.

    Args:
        rows: D's (n, d). change: columns of the changed tensors, see `Workspace.delta_columns`.
    """
    columns = {"act": rows.T}
    if change:
        columns["combined"] = np.concatenate([c / np.linalg.norm(c) for c in change.values()], axis=1)
    return {name: Scales.of(given, np.float32) for name, given in columns.items() if given.any()}


def scale_moments(scales: Mapping[str, Scales], bases: Sequence[Array]) -> dict[str, Array]:
    """Mean, variance and shape (3, Σr) of the first 1 … r columns of each basis, bases side by side."""
    if not scales:
        return {}
    shares = np.concatenate([shares_of(basis) for basis in bases], axis=1)
    wide = spread(shares.astype(np.float32))
    nulls = {name: one.null(shares, wide) for name, one in scales.items()}
    return {name: np.stack([null.mean, null.variance, null.shape]) for name, null in nulls.items()}


def measures(frame: Frame, at: Projections, k: int) -> dict[str, Array]:
    """Scores of all candidates at one layer, each (C,), all but specificity; NaN where not defined.

    Args:
        at: projections narrowed to k columns; more only of a candidate that has more. k: directions of the
            weight change that the cosine is with.
    """
    width = at.rows.shape[2]
    rank = np.maximum(at.rank, 0)
    tensors = [name for name in TENSORS if frame.spectra[name].size]
    fractions = {"act": (at.rows**2).sum(axis=(1, 2))}
    fractions |= {name: at.energy[name].sum(axis=1) for name in TENSORS}
    # Unit-norm tensors side by side: the mean of their own fractions.
    fractions["combined"] = np.mean([fractions[name] for name in tensors or TENSORS], axis=0)
    out: dict[str, Array] = {"rank": np.where(at.rank < 0, np.nan, at.rank.astype(np.float64))}
    for which, fraction in fractions.items():
        known = (rank > 0) & bool(frame.spectra[which].size)
        mean, variance = (moment[rank] for moment in frame.null(which, width))
        most = frame.ceiling(which, width)[rank]
        scores = against(fraction, mean, variance) | {"most": most / mean}
        if which in at.scales:
            scores |= against_scales(fraction, at.scales[which], rank)
        elif which in TESTED:
            scores |= dict.fromkeys(BESIDE, np.full(len(rank), np.nan))
        out |= {f"{name}_{which}": np.where(known, values, np.nan) for name, values in scores.items()}
    out["cosine"] = cosine_with_delta(at, rank, k)
    return out


def against(fraction: Array, mean: Array, variance: Array) -> dict[str, Array]:
    """R = fraction/mean, z and p against random subspaces with these moments."""
    spread = variance > 1e-14 * mean * mean
    z = np.divide(fraction - mean, np.sqrt(np.where(spread, variance, 1.0)))
    p = energy_p_values(fraction, mean, variance)
    return {"fraction": fraction, "r": fraction / mean, "z": np.where(spread, z, 0.0), "p": p}


BESIDE = ("r_scales", "z_scales", "p_scales")


def against_scales(fraction: Array, moments: Array, rank: NDArray[np.int64]) -> dict[str, Array]:
    """R, z and p against subspaces that keep the shares of every coordinate.

    Args:
        moments: (3, C, w), see `Projections`. rank: of each candidate, 0 for none.
    """
    at = np.maximum(rank, 1) - 1
    null = ScaleNull(*np.take_along_axis(moments, at[None, :, None], axis=2)[:, :, 0])
    mean = np.where(null.mean > 0, null.mean, np.nan)
    return dict(zip(BESIDE, (fraction / mean, null.z(fraction), null.p(fraction)), strict=True))


def specificity(frame: Frame, at: Projections, clean: int) -> dict[str, Array]:
    """Scores on D with the leading clean directions taken out of rows and bases, d → d − c.

    `clean`: how many directions.
    """
    count, _, k = at.rows.shape
    undefined = np.full(count, np.nan)
    inside = at.clean[:, :clean]
    taken, d = inside.shape[1], frame.d - inside.shape[1]
    on_clean = frame.rows @ frame.clean[:, :clean]
    length = (frame.rows**2).sum(axis=1) - (on_clean**2).sum(axis=1)
    keep = length > RANK_TOLERANCE**2 * max(float((frame.rows**2).sum(axis=1).max(initial=0.0)), 1e-300)
    if not keep.any() or d < 2:
        return dict.fromkeys(("r", "z", "p", "rank"), undefined) | {"taken": np.full(count, float(taken))}
    rows = (at.rows - on_clean @ inside)[:, keep] / np.sqrt(length[keep] * keep.sum())[None, :, None]
    energy, rank = outside(rows, inside, np.maximum(at.rank, 0))
    gram = frame.rows[keep] @ frame.rows[keep].T - on_clean[keep] @ on_clean[keep].T
    gram /= np.sqrt(np.outer(length[keep], length[keep])) * keep.sum()
    mean, variance = (m[rank] for m in null_moments(d, min(k, d), float((gram**2).sum())))
    scores = against(energy, mean, variance)
    found = {name: np.where(rank > 0, scores[name], np.nan) for name in ("r", "z", "p")}
    return found | {"rank": rank.astype(np.float64), "taken": np.full(count, float(taken))}


def outside(
    rows: Array, inside: Array, rank: NDArray[np.int64]
) -> tuple[Float[np.ndarray, " C"], NDArray[np.int64]]:
    """Energy of rows in what is left of bases outside the clean directions, and how many dimensions that has.

    With M = CᵀB, what is left of a basis has the Gram matrix G = I − MᵀM (k × k), and rows x meet it in
    xB − (xC)M: the energy is Σ x G⁺ xᵀ. With fewer clean directions than columns, the eigenvectors u of
    I − MMᵀ (c × c), with eigenvalues λ, give it: Mᵀu are G's for λ < 1, all others of G have eigenvalue 1.

    Args:
        rows: x (C, n, k). inside: M (C, c, k). rank: columns that are there (C,); later ones are 0.
    """
    _, c, k = inside.shape
    if c >= k:
        there = np.arange(k) < rank[:, None]
        gram = np.eye(k) * there[:, :, None] - inside.transpose(0, 2, 1) @ inside
        values, vectors = np.linalg.eigh(gram)
        alive = values > RANK_TOLERANCE**2
        met = ((rows @ vectors) ** 2).sum(axis=1)
        return (np.where(alive, met / np.where(alive, values, 1.0), 0.0)).sum(axis=1), alive.sum(axis=1)
    values, vectors = np.linalg.eigh(np.eye(c) - inside @ inside.transpose(0, 2, 1))
    alive = values > RANK_TOLERANCE**2
    met = ((rows @ inside.transpose(0, 2, 1) @ vectors) ** 2).sum(axis=1)
    changed = np.where(alive, met / np.where(alive, values, 1.0), -met / np.maximum(1.0 - values, 0.5))
    return (rows**2).sum(axis=(1, 2)) + changed.sum(axis=1), rank - (~alive).sum(axis=1)


def cosine_with_delta(at: Projections, rank: NDArray[np.int64], k: int) -> Array:
    """Mean principal cosine with the first k left singular vectors of the concatenated change."""
    delta = at.delta[:, :k]
    pairs = np.minimum(rank, delta.shape[1])
    total = np.linalg.svd(delta, compute_uv=False).sum(axis=1)
    return np.divide(total, pairs, out=np.full(len(rank), np.nan), where=pairs > 0)
