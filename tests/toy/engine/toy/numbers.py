"""How far apart two halves of the prompts lie."""

import numpy as np


def distances(activations: np.ndarray, grain: int) -> np.ndarray:
    """Distance of every `grain`-th prompt from the mean of all, float64; activations (n, width)."""
    return np.asarray(np.linalg.norm(activations - activations.mean(axis=0), axis=1)[::grain], np.float64)
