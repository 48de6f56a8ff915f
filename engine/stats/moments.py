"""Per-dimension moment matching: give one model's activations the mean and spread of another's.

Statistics are float64 and divide by n - 1. A dimension that does not vary on the fitting prompts has no
scale: it is sent to the target's mean and counted, instead of dividing rounding noise by nearly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from engine.errors import PatchError

CONSTANT_RTOL = 1e-6
"""A dimension whose sd is below this share of its mean size is constant: float32 keeps 1.2e-7 of a value,
and sums over a layer a few times that."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each dimension over the fitting prompts.

    Attributes:
        mean: (width,) float64.
        sd: (width,) float64, exactly 0 where the dimension is constant up to rounding.
        n: number of prompts they were fitted on.
    """

    mean: Float[np.ndarray, " width"]
    sd: Float[np.ndarray, " width"]
    n: int

    @property
    def constant(self) -> int:
        """How many dimensions do not vary."""
        return int((self.sd == 0).sum())


def fit_moments(x: Float[np.ndarray, "n width"]) -> Moments:
    """Fits the moments of `x` (prompt, dimension).

    Raises PatchError with fewer than two prompts and on values that are not finite.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 2:
        raise PatchError(
            "Moments need at least two prompts to fit on.",
            expected="an array (prompts, dimensions) with 2 prompts or more",
            given=f"shape {x.shape}",
            next_step="give the train split more prompts.",
        )
    if not np.isfinite(x).all():
        raise PatchError(
            "The activations to fit moments on are not all finite.",
            expected="finite numbers",
            given=f"{int((~np.isfinite(x)).sum())} values that are not",
        )
    mean = x.mean(axis=0)
    sd = x.std(axis=0, ddof=1)
    size = np.sqrt((x**2).mean(axis=0))
    return Moments(mean=mean, sd=np.where(sd <= CONSTANT_RTOL * size, 0.0, sd), n=x.shape[0])


def match_moments(
    x: Float[np.ndarray, "n width"], source: Moments, target: Moments
) -> Float[np.ndarray, "n width"]:
    """Standardises `x` with the source's moments and colours it with the target's.

    y_j = target.mean_j + target.sd_j * (x_j - source.mean_j) / source.sd_j, and target.mean_j where
    source.sd_j = 0. With target = source this is x itself.

    Args:
        x: (prompt, dimension) source activations.

    Returns:
        (prompt, dimension) float64.
    """
    safe = np.where(source.sd == 0, 1.0, source.sd)
    gain = np.where(source.sd == 0, 0.0, target.sd / safe)
    return target.mean + gain * (np.asarray(x, dtype=np.float64) - source.mean)
