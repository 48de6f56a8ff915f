"""Maps that look at no cross-model structure: nothing, the mean, or each dimension's mean and spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.transport.base import TransportMap
from engine.transport.sides import Array, Side


class Identity(TransportMap):
    """ŷ = x: the source's activation as it is. Fitting only records the width."""

    same_width = True
    uses_pairs = False

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        self.target_mean_ = y.moments[0]

    def _predict(self, x: Array) -> Array:
        return x


class MeanShift(TransportMap):
    """ŷ = x − μ_x + μ_y: the source's deviations around the target's mean.

    Attributes:
        source_mean_, target_mean_: (d,).
    """

    same_width = True
    uses_pairs = False

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        self.source_mean_, self.target_mean_ = x.moments[0], y.moments[0]

    def _predict(self, x: Array) -> Array:
        return x - self.source_mean_ + self.target_mean_


class MomentMatching(TransportMap):
    """ŷ_j = μ_y,j + sd_y,j (x_j − μ_x,j)/sd_x,j: each dimension standardised, then coloured.

    Standard deviations divide by n − 1. A source dimension that is constant up to rounding is sent to the
    target's mean. This is the raw condition of the patching experiments.

    Attributes:
        source_mean_, source_sd_, target_mean_, target_sd_: (d,), sd exactly 0 where constant.
        constant_: number of source dimensions that don't vary.
    """

    same_width = True
    uses_pairs = False

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        self.source_mean_, self.source_sd_ = x.moments
        self.target_mean_, self.target_sd_ = y.moments
        self.constant_ = int((self.source_sd_ == 0).sum())

    def _predict(self, x: Array) -> Array:
        safe = np.where(self.source_sd_ == 0, 1.0, self.source_sd_)
        gain = np.where(self.source_sd_ == 0, 0.0, self.target_sd_ / safe)
        return self.target_mean_ + gain * (x - self.source_mean_)
