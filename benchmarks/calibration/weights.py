"""Where what is said of two models' weights is false, and where it is true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.calibration.entry import Entry
from engine.weights.relatedness import Matrix, relatedness

SHAPE, COUNT = (64, 48), 8
ROOM = "app.weights"
Draw = Callable[[np.random.Generator], np.ndarray]


def _held(a: np.ndarray, b: np.ndarray, first: bool) -> Matrix:
    size, apart, other = (float(np.linalg.norm(x)) for x in (a, b - a, b))
    return Matrix(size, apart, other, first)


def _unrelated(draw: Draw, scale: float = 1.0) -> Callable[[np.random.Generator], list[Matrix]]:
    return lambda rng: [_held(draw(rng), scale * draw(rng), i == 0) for i in range(COUNT)]


def _gaussian(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=SHAPE)


def _heavy(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(3, size=SHAPE)


def _uneven(rng: np.random.Generator) -> np.ndarray:
    """Rows and columns of uneven scale, which both models share: the generator's first draws are fixed."""
    fixed = np.random.default_rng(0)
    rows, columns = np.exp(fixed.normal(size=SHAPE[0])), np.exp(fixed.normal(size=SHAPE[1]))
    return rows[:, None] * rng.normal(size=SHAPE) * columns


def _moved(rng: np.random.Generator) -> list[Matrix]:
    own = [rng.normal(size=SHAPE) for _ in range(COUNT)]
    return [_held(a, a + rng.normal(size=SHAPE), i == 0) for i, a in enumerate(own)]


ENTRIES = (
    Entry(
        "Common origin",
        "have a common origin (in part)",
        lambda matrices: relatedness(matrices).verdict in ("related", "partly"),
        {
            "unrelated weights": _unrelated(_gaussian),
            "unrelated weights, a third as large": _unrelated(_gaussian, 0.33),
            "unrelated weights with heavy tails": _unrelated(_heavy),
            "unrelated weights, rows and columns of shared uneven scales": _unrelated(_uneven),
        },
        _moved,
    ),
)
