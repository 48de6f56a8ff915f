"""Principal components of differences of activations, and how many of them unstructured differences have.

Δ (n, d) are two models' activations of the same prompts, one less the other. Its components are the right
singular vectors of Δ less its mean (or of Δ itself), in order of the mean square along them.

**How many.** Parallel analysis (Horn 1965) counts components that are larger than those of data without any
common structure. Such data are made here by a random sign for every coordinate of every unit (a prompt, a
pair, a category): each entry keeps its size, so that coordinates keep their scales, prompts and units theirs,
and rounding its grid; what coordinates have in common goes (Hong, Sheng & Dobriban 2020). Permuting each
coordinate on its own (Buja & Eyuboglu 1992) keeps the coordinates' scales alone: where some prompts change
more than others, or prompts of a pair change alike, it finds components in differences that have none.

Each component is compared with the *first* one of unstructured differences as large as what is left without
the components before it, until one is no larger (deflation as of Dobriban & Owen 2019): else what a first
component takes would hide the next ones.

**At many places.** The same signs are drawn at all places; limits hold for the largest of all of them
(`engine.difference_lens.numbers.balanced`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import linalg, optimize, special

from engine.difference_lens.numbers import FEWEST, balanced
from engine.errors import AnalysisError
from engine.stats.means import bootstrap_ratios
from engine.stats.scales import between
from engine.stats.uncertainty import Band

__all__ = [
    "FEWEST",
    "NOISY",
    "Principal",
    "Told",
    "Written",
    "counted",
    "flipped",
    "held_out",
    "limits",
    "principal",
]
__all__ += ["reach", "stability", "written"]

Array = NDArray[np.float64]
NOISY = 2.0
"""Times the mean square of rounding, all of it, that the mean square along one direction must exceed."""
TINY = 1e-12
"""Of the largest: a mean square below it is float64's rounding."""


@dataclass(frozen=True)
class Principal:
    """Components of some rows.

    Attributes:
        centre: (d,) what was taken off: the mean, or zeros. mean: (d,) of the rows.
        directions: (k, d) unit rows, each to the side that the mean lies on. square: (r,) the mean square
            along every direction there is, descending. total: their sum.
        whole: the mean square of the rows as they were.
    """

    centre: Float[np.ndarray, " d"]
    mean: Float[np.ndarray, " d"]
    directions: Float[np.ndarray, "k d"]
    square: Float[np.ndarray, " r"]
    total: float
    whole: float

    @property
    def shares(self) -> Float[np.ndarray, " r"]:
        """Of the total; 0 where there is none."""
        return self.square / self.total if self.total > 0 else self.square

    @property
    def mean_share(self) -> float:
        """What of the mean square the mean itself takes."""
        return float(self.mean @ self.mean) / self.whole if self.whole > 0 else 0.0

    def scores(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """How far each row lies along each direction, from the centre."""
        return np.asarray((rows - self.centre) @ self.directions.T)


def principal(rows: Float[np.ndarray, "n d"], centred: bool, most: int) -> Principal:
    """Components of some rows, by the smaller of the two products of the rows with themselves.

    Args:
        most: directions that are kept.

    Raises:
        AnalysisError: fewer than 2 rows, or rows that are not finite.
    """
    wide = np.asarray(rows, dtype=np.float64)
    if wide.ndim != 2 or len(wide) < 2 or not np.isfinite(wide).all():
        raise AnalysisError(
            "These differences have no components.",
            expected="at least 2 rows of finite numbers",
            given=f"shape {wide.shape}, {int((~np.isfinite(wide)).sum())} not finite",
        )
    mean = wide.mean(axis=0)
    centre = mean if centred else np.zeros_like(mean)
    left = wide - centre
    across = len(left) < left.shape[1]
    values, vectors = np.linalg.eigh(left @ left.T if across else left.T @ left)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > TINY * max(values[0], 0.0)
    values, vectors = values[keep], vectors[:, keep][:, :most]
    found = vectors.T @ left / np.sqrt(values[: vectors.shape[1], None]) if across else vectors.T
    side = np.where(found @ mean < 0, -1.0, 1.0)
    square = values / len(left)
    whole = float(np.vecdot(wide, wide).mean())
    return Principal(centre, mean, found * side[:, None], square, float(square.sum()), whole)


def flipped(
    rows: Float[np.ndarray, "n d"],
    unit: Int[np.ndarray, " n"],
    found: Principal,
    taken: int,
    draws: int,
    seed: int,
) -> Float[np.ndarray, " b"]:
    """The largest mean square along any direction when each coordinate of each unit has a random sign.

    Of the rows about their centre without the first `taken` components. What is left of a unit and of a
    coordinate is smaller by what these took of its own noise, its leverage: both are divided by the root of
    one less that (as in regression, MacKinnon & White 1985), else the flipped ones would be too small.

    Args:
        rows: as they are. unit: 0 … G − 1 of each row. found: their components, more than `taken`.
    """
    known, units = found.directions[:taken], int(unit.max()) + 1
    left = np.asarray(rows, dtype=np.float64) - found.centre
    taken_of = np.square(left @ known.T) / (len(left) * found.square[:taken])
    of_rows = taken_of.sum(axis=1) + (1 / len(left) if np.any(found.centre) else 0.0)
    left -= left @ known.T @ known
    left /= np.sqrt(np.maximum(1 - np.bincount(unit, of_rows)[unit], TINY))[:, None]
    left /= np.sqrt(np.maximum(1 - np.square(known).sum(axis=0), TINY))
    size, width = float(np.abs(left).max(initial=0.0)), left.shape[1]
    if size == 0.0:
        return np.zeros(draws)
    scaled = (left / size).astype(np.float32)
    rng, across = np.random.default_rng([seed, 4]), len(left) < width
    largest, last, count = np.empty(draws), min(left.shape) - 1, units * width
    for draw in range(draws):
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), np.uint8), count=count)
        signs = (2 * bits.view(np.int8) - 1).reshape(units, width)
        one = scaled * signs[unit]
        gram = one @ one.T if across else one.T @ one
        values = linalg.eigh(gram, eigvals_only=True, subset_by_index=[last, last], check_finite=False)
        largest[draw] = values[0]
    return largest * size**2 / len(left)


def limits(largest: Sequence[Float[np.ndarray, " b"]], level: float = 0.95) -> list[float]:
    """What a mean square must exceed at each place, for all places together, from the draws of each.

    0 where every draw is 0: nothing differs there.
    """
    return [
        limit if one.any() else 0.0
        for one, limit in zip(largest, balanced(largest, [1 - level] * len(largest)), strict=True)
    ]


@dataclass(frozen=True)
class Told:
    """What of a place is compared: its rows (n, d), their units, their components, and the mean square that
    rounding gives."""

    rows: Float[np.ndarray, "n d"]
    unit: Int[np.ndarray, " n"]
    found: Principal
    noise: float

    def draws(self, taken: int, draws: int, seed: int) -> Float[np.ndarray, " b"]:
        """`flipped` without the first `taken` components."""
        return flipped(self.rows, self.unit, self.found, taken, draws, seed)

    def exceeds(self, taken: int, limit: float) -> bool:
        """Whether the next component is larger than a limit, and than rounding."""
        return bool(self.found.square[taken] > max(limit, self.noise))


def counted(
    places: Sequence[Told],
    draws: int,
    seed: int,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[int], list[float]]:
    """How many components each place has beyond unstructured differences, and the limit of the next one.

    Every place stands at its first component. Limits are for all places together, each at its own next
    component; where one exceeds its limit, its place goes on to the one behind. What ends a place's count was
    compared by a limit that holds for all the components that end one, anywhere.

    Args:
        advance: called after the draws of each component.
    """
    counts, drawn = [0] * len(places), [one.draws(0, draws, seed) for one in places]
    done = len(places)
    while True:
        held = limits(drawn)
        ahead = [
            at
            for at, (one, limit) in enumerate(zip(places, held, strict=True))
            if drawn[at].any() and counts[at] < len(one.found.directions) and one.exceeds(counts[at], limit)
        ]
        if not ahead:
            return counts, held
        for at in ahead:
            counts[at] += 1
            if counts[at] < len(places[at].found.directions):
                drawn[at] = places[at].draws(counts[at], draws, seed)
            done += 1
            advance(done, 2 * done)


def held_out(
    found: Principal, rows: Float[np.ndarray, "n d"], unit: Int[np.ndarray, " n"], draws: int, seed: int
) -> Band:
    """Shares of other rows' mean square, about the same centre, along each direction, with intervals (k,)."""
    scores, left = found.scores(rows), rows - found.centre
    return bootstrap_ratios(np.square(scores).T, np.vecdot(left, left), groups=unit, n_boot=draws, seed=seed)


def stability(
    rows: Float[np.ndarray, "n d"], unit: Int[np.ndarray, " n"], found: Principal, draws: int, seed: int
) -> Float[np.ndarray, "b k"]:
    """|cos| of each direction with the most alike of as many of a resample of whole units, (draws, k)."""
    wide, count = np.asarray(rows, dtype=np.float64), len(found.directions)
    centred = bool(np.any(found.centre))
    rng, units = np.random.default_rng([seed, 5]), int(unit.max()) + 1
    cosines = np.zeros((draws, count))
    for draw in range(draws):
        drawn = np.bincount(rng.integers(0, units, units), minlength=units)[unit]
        again = principal(np.repeat(wide, drawn, axis=0), centred, count)
        alike = np.abs(found.directions @ again.directions.T)
        cosines[draw] = alike.max(axis=1, initial=0.0)
    return cosines


def reach(
    unembedding: Float[np.ndarray, "v d"], direction: Float[np.ndarray, " d"], level: float = 0.95
) -> float:
    """|logit| that unrelated directions of length 1 exceed at no token, with this probability at least.

    A token's logit under a random direction is normal with variance ‖u‖²/d; under random signs of the
    coordinates of this one, with Σ u_i² v_i². Of V normal numbers the largest is furthest out where they are
    independent (Šidák 1967), for which the limit is solved; of the two kinds the larger one counts.
    """
    squared = np.square(unembedding)
    return max(
        _largest(np.sqrt(squared.mean(axis=1, dtype=np.float64)), level),
        _largest(np.sqrt((squared @ np.square(direction).astype(squared.dtype)).astype(np.float64)), level),
    )


def _largest(sd: Float[np.ndarray, " v"], level: float) -> float:
    """x with Π P(|N(0, sd²)| ≤ x) = level."""
    sd = sd[sd > 0]
    if not sd.size:
        return 0.0

    def short(x: float) -> float:
        return float(np.log1p(-2 * special.ndtr(-x / sd)).sum()) - float(np.log(level))

    return float(optimize.brentq(short, 1e-3 * sd.max(), 12.0 * sd.max()))


@dataclass(frozen=True)
class Written:
    """How far a direction lies in what a weight change writes.

    Attributes:
        cosine: with the subspace: the length of the direction's part inside. high: what 95 % of unrelated
            subspaces stay below. p: one-sided, the larger of the two nulls'.
    """

    cosine: float
    high: float
    p: float


def written(direction: Float[np.ndarray, " d"], basis: Float[np.ndarray, "d r"]) -> Written:
    """A direction's cosine with a subspace beside unrelated ones: uniformly random ones, and ones that keep
    every coordinate's share (`engine.stats.scales`).

    Args:
        basis: column-orthonormal.
    """
    (d, rank), v = basis.shape, direction / np.linalg.norm(direction)
    inside = min(float(np.square(v @ basis).sum()), 1.0)
    if rank >= d:
        return Written(1.0, 1.0, 1.0)
    scaled = between(np.square(v), np.square(basis).sum(axis=1)[:, None])
    grid = np.linspace(0.0, 1.0, 1001)
    tails = np.asarray(scaled.p(grid[:, None]))[:, 0]
    kept = float(grid[np.argmax(tails <= 0.05)]) if (tails <= 0.05).any() else 1.0
    shapes = rank / 2, (d - rank) / 2
    p = max(float(special.betainc(*shapes[::-1], 1 - inside)), float(scaled.p(np.array([inside]))[0]))
    return Written(float(np.sqrt(inside)), float(np.sqrt(max(special.betaincinv(*shapes, 0.95), kept))), p)
