"""What a rank sweep puts in: maps truncated to every k, and swaps restricted to k directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from engine.rank.numbers import partial_sums
from engine.transport import ScaledProcrustes


class Cell(NamedTuple):
    """One condition of the sweep.

    Attributes:
        kind: raw, mapped, truncated, projector or random.
        draw: of the random basis, else 0. k: 0 for raw and mapped, which have no rank.
    """

    kind: str
    draw: int
    k: int
    alpha: float


@dataclass(frozen=True)
class RankPath:
    """Truncations of one fitted map on some prompts: ŷ_k = μ + s_k Σ_{i≤k} c_i b_i.

    Attributes:
        mean: (d,). coordinates: (n, r). directions: (r, d). scales: (r,) s_k.
    """

    mean: Float[np.ndarray, " d"]
    coordinates: Float[np.ndarray, "n r"]
    directions: Float[np.ndarray, "r d"]
    scales: Float[np.ndarray, " r"]

    @classmethod
    def of(cls, fitted: ScaledProcrustes, x: Float[np.ndarray, "n dx"]) -> RankPath:
        """The path up to the map's rank in use, on source rows."""
        full = fitted.n_components_
        coordinates = (x - fitted.source_mean_) @ fitted.left_[:, :full]
        return cls(fitted.target_mean_, coordinates, fitted.right_[:full], fitted.scales_[:full])

    def at(self, rows: Int[np.ndarray, " m"], ks: Sequence[int]) -> Float[np.ndarray, "k m d"]:
        """Mapped rows at each k; above the path's own rank they stay as they are there."""
        full = self.scales.size
        out = np.empty((len(ks), len(rows), self.mean.size))
        for i, total in enumerate(partial_sums(self.coordinates[rows], self.directions, ks)):
            out[i] = self.mean + (self.scales[min(ks[i], full) - 1] * total if full else 0.0)
        return out


@dataclass(frozen=True)
class RankVectors:
    """Everything that a sweep over (kind, k, α) puts in, made for a few prompts at a time.

    Attributes:
        own, reference, mapped: (n, d) the target's own activation, the patch that drop% is relative to at
            α = 1, and the map's output.
        mean: (d,) the target's train mean.
        paths, path_of: truncations, and which of them each prompt uses (n,) with its row there (n,); no paths
            where the map has none.
        bases: (d, r) the projector's basis and behind it the random ones.
        truncated_ks, projector_ks: ranks, ascending. alphas: amplitudes.
        deviation: α scales the deviation from `mean` only. reference_scaled: α scales the reference too.
    """

    own: Float[np.ndarray, "n d"]
    reference: Float[np.ndarray, "n d"]
    mapped: Float[np.ndarray, "n d"]
    mean: Float[np.ndarray, " d"]
    paths: tuple[RankPath, ...]
    path_of: Int[np.ndarray, "n 2"]
    bases: tuple[Float[np.ndarray, "d r"], ...]
    truncated_ks: tuple[int, ...]
    projector_ks: tuple[int, ...]
    alphas: tuple[float, ...]
    deviation: bool
    reference_scaled: bool

    def cells(self) -> list[Cell]:
        """The conditions in the order of `at`'s first axis."""
        raws = self.alphas if self.reference_scaled else (1.0,)
        found = [Cell("raw", 0, 0, a) for a in raws] + [Cell("mapped", 0, 0, a) for a in self.alphas]
        found += [Cell("truncated", 0, k, a) for k in self.truncated_ks for a in self.alphas]
        for draw in range(len(self.bases)):
            kind = "random" if draw else "projector"
            found += [Cell(kind, draw, k, a) for k in self.projector_ks for a in self.alphas]
        return found

    def at(self, prompts: Sequence[int]) -> Float32[np.ndarray, "c m d"]:
        """Vectors of every condition for some prompts."""
        rows = np.asarray(prompts)
        own = self.own[rows]
        amplitudes = self.alphas if self.reference_scaled else (1.0,)
        full = self._amplified(self.mapped[rows], self.alphas)
        parts = [self._amplified(self.reference[rows], amplitudes), full]
        if self.paths:
            path = self._truncated(rows)
            parts += [self._amplified(rank, self.alphas) for rank in path]
        swap = (full - own).reshape(-1, own.shape[1])
        for basis in self.bases:
            for inside in partial_sums(swap @ basis, basis.T, self.projector_ks):
                parts.append(own + inside.reshape(full.shape))
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")

    def _truncated(self, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "k m d"]:
        out = np.empty((len(self.truncated_ks), len(rows), self.mean.size))
        which = self.path_of[rows]
        for number in np.unique(which[:, 0]):
            mine = which[:, 0] == number
            out[:, mine] = self.paths[number].at(which[mine, 1], self.truncated_ks)
        return out

    def _amplified(
        self, vectors: Float[np.ndarray, "m d"], alphas: Sequence[float]
    ) -> Float[np.ndarray, "a m d"]:
        amplitude = np.asarray(alphas)[:, None, None]
        if self.deviation:
            return np.asarray(self.mean + amplitude * (vectors - self.mean))
        return np.asarray(amplitude * vectors)
