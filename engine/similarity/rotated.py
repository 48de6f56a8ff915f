"""Random pairings within kinds, many for the price of a few: rotations of random arrangements.

One side's units of each kind lie in a fixed order, the other's in a random one, which is then rotated, each
kind by a random shift of its own. Every such pairing is a uniformly random one within kinds. With the Gram
matrices cut into blocks of kind u by kind v, Σ_ij K_ij L_π(i)π(j) is the sum over blocks of their
cross-correlation at the shifts (s_u, s_v), and the correlation at all shifts is one Fourier transform in two
dimensions. Several arrangements keep the pairings from depending on one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.float64]
Spectrum = NDArray[np.complex64]
ARRANGEMENTS = 2


def possible(tables: Sequence[NDArray[np.intp]]) -> int:
    """In how many ways an arrangement can be rotated; tables as `unit_tables` has them."""
    return math.prod(len(table) for table in tables)


@dataclass(frozen=True)
class Rotations:
    """Random pairings of n prompts.

    Attributes:
        sizes: of segments, each a member of all units of a kind. kinds: kind of each segment.
        left: (n,) prompts of one side, segment by segment.
        right: for each arrangement (n,) those of the other side.
        shifts: for each arrangement (draws, kinds), by how much each kind is rotated.
    """

    sizes: tuple[int, ...]
    kinds: NDArray[np.intp]
    left: Int[np.ndarray, " n"]
    right: list[NDArray[np.intp]]
    shifts: list[NDArray[np.intp]]

    def permutations(self) -> list[NDArray[np.intp]]:
        """Which prompt of the other side each prompt gets, for each draw (n,)."""
        found = []
        for right, places in zip(self.right, self._places(), strict=True):
            for at in places:
                order = np.empty_like(self.left)
                order[self.left] = right[at]
                found.append(order)
        return found

    def pair(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[Array, Array]:
        """Σ_ij K_ij L_π(i)π(j) and Σ_i K_ii L_π(i)π(i) of every draw, (draws,) each.

        Args:
            a, b: Gram matrices K and L, (n, n), transformed in single precision.
        """
        starts = self._starts()
        one, da, db = self._spectrum(a, self.left), np.diagonal(a)[self.left], np.diagonal(b)
        full, diagonal = [], []
        for right, shifts, places in zip(self.right, self.shifts, self._places(), strict=True):
            table = self._correlation(one, self._spectrum(b, right))
            at = starts + shifts[:, self.kinds]
            full.append(table[at[:, :, None], at[:, None, :]].sum((1, 2), dtype=np.float64))
            diagonal.append(db[right].astype(np.float64)[places] @ da.astype(np.float64))
        return np.concatenate(full), np.concatenate(diagonal)

    def _starts(self) -> NDArray[np.intp]:
        return np.cumsum((0, *self.sizes[:-1])).astype(np.intp)

    def _places(self) -> list[NDArray[np.intp]]:
        """Where in the other side's arrangement each place of this one's is paired, (draws, n) each."""
        sizes, starts = (np.repeat(own, self.sizes) for own in (self.sizes, self._starts()))
        own, kinds = np.arange(len(self.left)) - starts, np.repeat(self.kinds, self.sizes)
        return [starts + (own + shifts[:, kinds]) % sizes for shifts in self.shifts]

    def _spectrum(self, k: NDArray[np.floating], at: NDArray[np.intp]) -> Spectrum:
        """Every block's transform, over half of the columns' frequencies."""
        ordered = k.astype(np.float32, copy=False).take(at, 0).take(at, 1)
        ends = np.cumsum(self.sizes)[:-1]
        halves = [fft.rfft(part, axis=1) for part in np.split(ordered, ends, axis=1)]
        return np.concatenate([fft.fft(part, axis=0) for part in np.split(np.hstack(halves), ends)])

    def _correlation(self, one: Spectrum, other: Spectrum) -> NDArray[np.float32]:
        """Σ_ij K_ij L_(i+s)(j+t) of every pair of segments at every pair of shifts, (n, n)."""
        ends, halves = np.cumsum(self.sizes)[:-1], np.cumsum([size // 2 + 1 for size in self.sizes])[:-1]
        back = np.concatenate([fft.ifft(part, axis=0) for part in np.split(one.conj() * other, ends)])
        parts = zip(np.split(back, halves, axis=1), self.sizes, strict=True)
        return np.hstack([fft.irfft(part, size, axis=1) for part, size in parts])


def rotations(tables: Sequence[NDArray[np.intp]], draws: int, rng: np.random.Generator) -> Rotations:
    """Random pairings of prompts that move whole units among units of their kind.

    Args:
        tables: for each kind (units, members), the prompts.
        draws: how many pairings.
    """

    def flat(parts: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
        return np.concatenate([part.T.ravel() for part in parts])

    counts = [len(table) for table in tables]
    kinds = np.repeat(np.arange(len(tables)), [table.shape[1] for table in tables])
    right, shifts = [], []
    for part in np.array_split(np.arange(draws), ARRANGEMENTS):
        right.append(flat([table[rng.permutation(len(table))] for table in tables]))
        shifts.append(rng.integers(0, counts, size=(part.size, len(tables))))
    return Rotations(tuple(counts[kind] for kind in kinds), kinds, flat(tables), right, shifts)
