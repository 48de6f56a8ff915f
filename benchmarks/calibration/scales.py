"""Coordinates as those of real streams: of uneven scale, with rogue dimensions, heavy-tailed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.entry import Make
from benchmarks.calibration.streams import streams

Array = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Coordinates:
    """The law of a stream's coordinates: one scale each, shared by all that is drawn, and a law about it.

    Attributes:
        log_sd: of the scales. rogue: how many are `ROGUE` times as large. heavy: Student's t with 3 degrees
            of freedom in place of the normal law. real: scales and law are those of a real stream.
    """

    log_sd: float = 0.0
    rogue: int = 0
    heavy: bool = False
    real: bool = False

    def scale(self, rng: Rng, d: int) -> Array:
        """Scales (d,)."""
        if self.real:
            return real_scale(rng, d)
        found = np.exp(self.log_sd * rng.normal(size=d)) if self.log_sd else np.ones(d)
        found[: self.rogue] *= ROGUE
        return found

    def draw(self, rng: Rng, *size: int) -> Array:
        """Independent values of scale 1."""
        if self.real:
            return rng.choice(real_law(), size)
        return rng.standard_t(3, size=size) if self.heavy else rng.standard_normal(size)


@cache
def real_law() -> Array:
    """Values of a real stream's coordinates, each about its mean and over its sd, all in one."""
    found = streams().one[1:]
    return np.ravel((found - found.mean(axis=1, keepdims=True)) / found.std(axis=1, keepdims=True))


def real_scale(rng: Rng, d: int) -> Array:
    """Sds of d coordinates of a real stream at some state, the largest among them."""
    found = streams().one[1:]
    sd = np.sort(found[rng.integers(len(found))].std(axis=0))
    return np.asarray(rng.permutation(np.append(rng.choice(sd[:-1], d - 1, replace=False), sd[-1])))


ROGUE = 12.0
EVEN = Coordinates()
UNEVEN: Mapping[str, Coordinates] = {
    "coordinates of uneven scale, log-sd 0.5": Coordinates(log_sd=0.5),
    "of uneven scale, log-sd 1": Coordinates(log_sd=1.0),
    "one rogue dimension": Coordinates(rogue=1),
    "four rogue dimensions": Coordinates(rogue=4),
    "heavy tails (Student's t, 3 degrees of freedom)": Coordinates(heavy=True),
    "scales and law of SmolLM2's stream": Coordinates(real=True),
}
"""What else the coordinates of a null may be."""


def uneven(make: Callable[[Coordinates], Make]) -> dict[str, Make]:
    """A generator for each kind of coordinates."""
    return {name: make(coordinates) for name, coordinates in UNEVEN.items()}


def basis(rng: Rng, scale: Array, k: int, coordinates: Coordinates = EVEN) -> Array:
    """A k-subspace that knows of the coordinates no more than their scale, (d, k)."""
    return np.asarray(np.linalg.qr(scale[:, None] * coordinates.draw(rng, len(scale), k))[0])
