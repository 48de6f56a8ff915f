"""Where what is said of categories of prompts is false, and where it is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from app.patching.categories import categories_title
from benchmarks.calibration import real
from benchmarks.calibration.entry import Entry
from engine.stats.parts import Part, by_part

ROOM = "app.patching"
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _parts(
    sizes: Sequence[int], draw: Draw, first: Draw | None = None, pairs: bool = False
) -> Callable[[np.random.Generator], list[Part]]:
    """Categories of some sizes, the first one with a law of its own where it is given."""

    def make(rng: np.random.Generator) -> list[Part]:
        laws = [first or draw, *[draw] * (len(sizes) - 1)]
        values = np.concatenate([law(rng, size) for law, size in zip(laws, sizes, strict=True)])
        keys = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
        if pairs:  # both prompts of a pair are alike
            values, keys = np.repeat(values, 2), [key for key in keys for _ in range(2)]
        groups = np.repeat(np.arange(values.size // 2), 2) if pairs else None
        return by_part(values, keys, groups, n_boot=400, draws=499)

    return make


def _skewed(sd: float) -> Draw:
    """A KL with mean 1: lognormal."""
    return lambda rng, n: np.exp(sd * rng.normal(size=n) - sd**2 / 2)


def _dealt(rng: np.random.Generator) -> list[Part]:
    return by_part(*real.dealt(rng), n_boot=400, draws=499)


def _triggered(rng: np.random.Generator, n: int) -> np.ndarray:
    return 5 * _skewed(0.7)(rng, n)


ENTRIES = (
    Entry(
        "Categories",
        "clearest for category …",
        lambda parts: "clearest" in categories_title(parts, "KL"),
        {
            "one skewed law in three categories": _parts((10, 10, 10), _skewed(1.5)),
            "the same in pairs of alike prompts": _parts((10, 10, 10), _skewed(1.5), pairs=True),
            "the same in nine categories, some small": _parts((20, 4, 8, 8, 8, 4, 8, 8, 8), _skewed(1.5)),
            "one mean, one category wide and skewed": _parts((6, 40), _skewed(0.3), _skewed(1.2)),
            real.SHUFFLED: _dealt,
            "one mean, one category narrow": _parts((10, 10, 10), _skewed(1.2), _skewed(0.3)),
        },
        _parts((12, 12, 12), _skewed(0.7), _triggered),
    ),
)
CONCLUDES = {"categories.categories_title": ("Categories",)}
