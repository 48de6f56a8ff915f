"""Token clouds of problems in two languages with known shared dimensions."""

from __future__ import annotations

import numpy as np


def planted(
    seed: int, *, problems: int = 12, tokens: int = 14, d: int = 64, shared: int = 10
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Clouds whose means depend on the problem alone in `shared` dimensions, on the language elsewhere."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(d, dtype=bool)
    mask[rng.choice(d, shared, replace=False)] = True
    common = 2.0 * rng.normal(size=(problems, d))
    clouds = []
    for _language in range(2):
        means = np.where(mask, common, 2.0 * rng.normal(size=(problems, d)) + rng.normal(size=d))
        clouds.append([mean + rng.normal(size=(tokens, d)) for mean in means])
    return clouds[0], clouds[1], mask
