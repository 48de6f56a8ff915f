"""Which tokens stand out: limits over all tokens and places at once, and intervals that go with them.

Of G units (prompts, pairs, categories) with sums S_g of a token's logit, M their mean and s their standard
deviation, t = √G M/s. Two limits hold for the largest |t| of all tokens, blocks and positions together:

- **sign flips** of whole units, exact where a unit's difference is as likely to point the other way. s
  follows from M and Σ S_g², which no flip changes, so that |t| rises with |Σ ±S_g| ÷ √(Σ S_g²);
- a **bootstrap-t** of whole units, the largest and the smallest (M* − M) ÷ se* of each resample, which
  follows skew (Romano & Wolf 2005; Hall 1988), with the tails that few units need (`engine.stats.means`).

A token stands beyond chance when it exceeds both. Either alone keeps its family-wise rate on data that it is
made for; flips alone are wrong in 10 to 20 % of samples where a few prompts change far more than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from engine.stats.means import UNSEEN, expanded_level

__all__ = ["FEWEST", "NOISY", "Limits", "balanced", "beyond", "flips", "foremost", "limits", "resamples"]
__all__ += ["sums"]

Array = NDArray[np.float64]
FEWEST = 12
"""Units below which no token is named."""
NOISY = 3.0
"""Times its standard deviation under rounding in no particular direction that a mean logit must reach."""
SLACK = 1e-5
"""Relative: shares and t are float32."""


def flips(units: int, draws: int, seed: int) -> Float[np.ndarray, "b g"]:
    """Random signs of whole units, float32 (draws, units)."""
    signs = np.random.default_rng([seed, 1]).integers(0, 2, (draws, units))
    return (2 * signs - 1).astype(np.float32)


def resamples(units: int, draws: int, seed: int) -> Float[np.ndarray, "b g"]:
    """How often each unit is drawn, float32 (draws, units)."""
    drawn = np.random.default_rng([seed, 2]).multinomial(units, np.full(units, 1 / units), size=draws)
    return drawn.astype(np.float32)


def sums(rows: Float[np.ndarray, "n d"], unit: Int[np.ndarray, " n"]) -> Float[np.ndarray, "g d"]:
    """Sums of the rows of each unit, float64; `unit`: 0 … G − 1 of each row."""
    found = np.zeros((int(unit.max()) + 1, rows.shape[1]))
    np.add.at(found, unit, rows)
    return found


@dataclass(frozen=True)
class Limits:
    """What t must exceed, for all tokens and places together.

    Attributes:
        flip: |t| under sign flips; infinite where too few units leave no test.
        low, high: t* of the bootstrap, below 0 and above.
        units: how many there are.
    """

    flip: float
    low: float
    high: float
    units: int

    @classmethod
    def none(cls, units: int) -> Limits:
        """Nothing exceeds them."""
        return cls(np.inf, -np.inf, np.inf, units)

    @property
    def known(self) -> bool:
        """Whether anything can exceed them: neither too few units nor too few draws for the level."""
        return bool(np.isfinite(self.up) and np.isfinite(self.down))

    @property
    def up(self) -> float:
        """What t of a promoted token must exceed."""
        return max(self.flip, self.high)

    @property
    def down(self) -> float:
        """What t of a suppressed token must lie below."""
        return min(-self.flip, self.low)


def limits(
    shares: Sequence[Float[np.ndarray, " b"]],
    lows: Sequence[Float[np.ndarray, " b"]],
    highs: Sequence[Float[np.ndarray, " b"]],
    units: Sequence[int],
    level: float = 0.95,
) -> dict[int, Limits]:
    """Limits of the places of each number of units, from what each place gave in every flip and resample.

    Few units need far limits, which those of more should not have to exceed. So the largest of a draw is
    counted in limits that the places of as many units would have alone, and all limits are widened by what
    the largest of all such numbers exceeds (balanced simultaneous sets, Beran 1988).

    Args:
        shares: of each place the largest |Σ ±S_g| ÷ √(Σ S_g²) of its tokens, in every flip.
        lows, highs: of each place the smallest and the largest t* of its tokens, in every resample.
        units: of each place; one that has fewer than `FEWEST` counts for nothing.
    """
    sizes = sorted({count for count in units if count >= FEWEST})
    if not sizes:
        return {}
    tails = [(1 - expanded_level(level, count)) / 2 * count / (count + UNSEEN) for count in sizes]

    def largest(values: Sequence[Float[np.ndarray, " b"]], count: int) -> Array:
        return np.max([one for one, own in zip(values, units, strict=True) if own == count], axis=0)

    flipped = [t_of(largest(shares, count) * (1 + SLACK), count) for count in sizes]
    flip = balanced(flipped, [1 - level] * len(sizes))
    high = balanced([largest(highs, count) for count in sizes], tails)
    low = balanced([largest([-one for one in lows], count) for count in sizes], tails)
    return {count: Limits(flip[at], -low[at], high[at], count) for at, count in enumerate(sizes)}


def balanced(largest: Sequence[Array], tails: Sequence[float]) -> list[float]:
    """Limit of each group: its own at its tail, times what the largest share of a limit exceeds.

    Infinite where too few draws leave none, or a group's own is 0.

    Args:
        largest: of each group the largest of every draw.
    """
    own = [_upper(draws, tail) for draws, tail in zip(largest, tails, strict=True)]
    shares = [draws / limit for draws, limit in zip(largest, own, strict=True) if 0 < limit < np.inf]
    wider = _upper(np.max(shares, axis=0), max(tails)) if shares else float("inf")
    return [limit * max(wider, 1.0) if limit > 0 else float("inf") for limit in own]


def t_of(share: Float[np.ndarray, " b"] | float, units: int) -> Float[np.ndarray, " b"]:
    """t = √G M/s of |Σ S_g| ÷ √(Σ S_g²); infinite where all units are equal."""
    share = np.asarray(share, dtype=np.float64)
    left = np.maximum(units - share**2, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(share * np.sqrt((units - 1) / left))


def _upper(largest: Array, tail: float) -> float:
    """What an observed largest must exceed for p = (1 + #{draws as large}) ÷ (1 + draws) ≤ tail."""
    at = int(np.floor(tail * (largest.size + 1)))
    return float(np.sort(largest)[-at]) if at >= 1 else float("inf")


def beyond(
    mean: Float[np.ndarray, " v"],
    se: Float[np.ndarray, " v"],
    found: Limits,
    floor: Float[np.ndarray, " v"] | float = 0.0,
) -> Bool[np.ndarray, " v"]:
    """Tokens whose mean logit is beyond chance, and further from 0 than rounding (`floor`) takes it."""
    if not found.known:
        return np.zeros(np.shape(mean), dtype=bool)
    with np.errstate(invalid="ignore"):
        past = (mean > found.up * se) | (mean < found.down * se)
    return past & (np.abs(mean) > floor) & (mean != 0)


def foremost(
    mean: Float[np.ndarray, " v"], told: Bool[np.ndarray, " v"], most: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " s"]]:
    """Tokens that are shown: of either sign at most so many, those beyond chance first, by size."""
    size = np.abs(mean)

    def first(side: Bool[np.ndarray, " v"]) -> Int[np.ndarray, " k"]:
        found: list[int] = []
        for group in (side & told, side & ~told):
            index = np.flatnonzero(group)
            kept = min(most - len(found), index.size)
            if kept > 0:
                part = index[np.argpartition(-size[index], kept - 1)[:kept]]
                found += part[np.argsort(-size[part], kind="stable")].tolist()
        return np.array(found, dtype=np.int64)

    return first(mean > 0), first(mean < 0)
