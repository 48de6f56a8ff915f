"""Does a subspace Z hold what two languages share about a problem, or what tells them apart?

Each problem has one vector in either language. Separation is a ratio of Euclidean distances,

    ratio(S) = mean ‖P_S(a_i − b_i)‖ / mean over languages and i ≠ j of ‖P_S(a_i − a_j)‖,

cross-lingual same-problem over within-language different-problem, for S = Z, its complement and the whole
space. A random k-subspace has ratio(Z) < ratio(Z⊥) about half the time, so that inequality alone says
nothing: "Z separates" also asks that few random subspaces have as small a ratio, and few of those that keep
Z's share of every coordinate, since a few large coordinates set both Z and the ratio.
Distances come from cumulative squared coefficients; nothing of size d × d is formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.geometry.problems import Bases, Problems, Squares, squares_between
from engine.geometry.ratio_nulls import DRAWS, random_ratios, signed_ratios
from engine.geometry.z import check_basis
from engine.stats.uncertainty import Band, Interval, band, resample_weights

Array = NDArray[np.float64]

PAIRINGS = 999
ALPHA = 0.05
__all__ = [
    "ALPHA",
    "DRAWS",
    "Bases",
    "Problems",
    "Separation",
    "Squares",
    "inside_ratios",
    "inside_squares",
    "random_ratios",
    "rank_p",
    "scale_p",
    "separates",
    "separation",
    "separation_ratios",
    "signed_ratios",
]


def inside_squares(problems: Problems, bases: Bases) -> Iterator[tuple[int, Squares]]:
    """(k, squared distances inside Z) for every k, ascending; nested bases in one pass."""
    nested = not isinstance(bases, Mapping)
    ks = range(1, bases.shape[1] + 1) if not isinstance(bases, Mapping) else sorted(bases)
    running: Squares | None = None
    joined = bases if not isinstance(bases, Mapping) else np.concatenate([bases[k] for k in ks], axis=1)
    if joined.shape[0] != problems.d:
        raise AnalysisError(
            "The basis belongs to another model width.",
            expected=f"d = {problems.d}",
            given=f"d = {joined.shape[0]}",
        )
    for part in (joined,) if not isinstance(bases, Mapping) else (bases[k] for k in ks):
        check_basis(np.asarray(part))
    rows = [values @ joined for values in (*problems.centred, problems.shift)]
    start = 0
    for k in ks:
        stop = k if nested else start + k
        one, two, shift = (values[:, start:stop] for values in rows)
        found = Squares(squares_between(one), squares_between(two), np.vecdot(shift, shift))
        if nested and running is not None:
            found = Squares(running.one + found.one, running.two + found.two, running.cross + found.cross)
        running, start = found, stop
        yield k, found


def inside_ratios(
    problems: Problems, basis: Float[np.ndarray, "d m"], ks: Sequence[int]
) -> Float[np.ndarray, " s"]:
    """ratio(Z) of the first k columns of a nested basis for some ascending ks, such as one head's."""
    rows = [values @ basis for values in (*problems.centred, problems.shift)]
    n, out = problems.n, []
    running = Squares(np.zeros((n, n)), np.zeros((n, n)), np.zeros(n))
    for start, stop in zip((0, *ks[:-1]), ks, strict=True):
        one, two, shift = (values[:, start:stop] for values in rows)
        more = Squares(squares_between(one), squares_between(two), np.vecdot(shift, shift))
        running = Squares(running.one + more.one, running.two + more.two, running.cross + more.cross)
        out.append(float(running.ratio()))
    return np.array(out)


def separation_ratios(problems: Problems, bases: Bases) -> tuple[tuple[int, ...], Array, Array]:
    """(ks, ratio(Z), ratio(Z⊥)) for every k; the complement of the whole space has none (NaN)."""
    ks, inside, outside = [], [], []
    for k, found in inside_squares(problems, bases):
        ks.append(k)
        inside.append(float(found.ratio()))
        outside.append(float((problems.whole - found).ratio()) if k < problems.d else np.nan)
    return tuple(ks), np.array(inside), np.array(outside)


@dataclass(frozen=True)
class Separation:
    """Separation by Z and by its complement, for several k.

    Attributes:
        ks, d, n: dimensions, model width, problems.
        inside, outside: ratio(Z) and ratio(Z⊥) over ks, bootstrap over problems. full: the whole space.
        random: (draws, ks) ratio(Z) of random k-subspaces.
        p_random: share of random k-subspaces with a ratio at least as small (one-sided rank).
        p_scales: the same of subspaces that keep Z's share of every coordinate; NaN where the inequality or
            p_random say no already.
        p_pairing: the same under wrong pairing of the problems inside Z.
        separates: whether Z separates, at each k.
    """

    ks: tuple[int, ...]
    d: int
    n: int
    inside: Band
    outside: Band
    full: Interval
    random: Array
    p_random: Array
    p_pairing: Array
    p_scales: Array

    @property
    def separates(self) -> NDArray[np.bool_]:
        return separates(self.inside.estimate, self.outside.estimate, self.p_random, self.p_scales)


def separates(inside: Array, outside: Array, p_random: Array, p_scales: Array | float) -> NDArray[np.bool_]:
    """The rule: ratio(Z) < ratio(Z⊥), and p < 0.05 against random k-subspaces of either kind; NaN is not."""
    closer = np.asarray(inside) < np.asarray(outside)
    found: NDArray[np.bool_] = closer & (np.asarray(p_random) < ALPHA) & (np.asarray(p_scales) < ALPHA)
    return found


def scale_p(
    problems: Problems,
    bases: Bases,
    inside: Float[np.ndarray, " s"],
    asked: NDArray[np.bool_],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[np.ndarray, " s"]:
    """One-sided rank p of ratio(Z) among `signed_ratios`, for the k that are asked about; NaN for others."""
    ks = sorted(bases) if isinstance(bases, Mapping) else range(1, bases.shape[1] + 1)
    out = np.full(len(ks), np.nan)
    for at in np.flatnonzero(asked):
        basis = bases[ks[at]] if isinstance(bases, Mapping) else bases[:, : ks[at]]
        drawn = signed_ratios(problems, np.asarray(basis), draws=draws, seed=seed)
        out[at] = (1 + (drawn <= inside[at] * (1 + 1e-6)).sum()) / (1 + draws)  # float32 draws
    return out


def separation(
    problems: Problems,
    bases: Bases,
    random: Float[np.ndarray, "b s"],
    *,
    pairings: int = PAIRINGS,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Separation:
    """Both ratios at every k with intervals, and all nulls.

    Args:
        random: from `random_ratios` for the same ks, at least 200 draws.
        pairings: random pairings of one language's problems with the other's.

    Raises:
        AnalysisError: draws for other ks, or fewer than 200.
    """
    weights = resample_weights(problems.n, n_boot, seed)
    rng = np.random.default_rng(seed)
    wrong = np.stack([rng.permutation(problems.n) for _ in range(pairings)])
    ks, values, drawn, p_pairing = [], [], [], []
    for k, found in inside_squares(problems, bases):
        rest = problems.whole - found
        ks.append(k)
        values.append([float(found.ratio()), float(rest.ratio()) if k < problems.d else np.nan])
        drawn.append([_resampled(found, weights), _resampled(rest, weights)])
        basis = bases[k] if isinstance(bases, Mapping) else bases[:, :k]
        p_pairing.append(_p_pairing(problems, basis, found.cross, wrong))
    if random.ndim != 2 or random.shape[1] != len(ks) or random.shape[0] < DRAWS:
        raise AnalysisError(
            "The random subspaces do not belong to these dimensions.",
            expected=f"at least {DRAWS} draws for each of {len(ks)} k",
            given=f"shape {random.shape}",
        )
    estimate, draws = np.array(values).T, np.array(drawn).transpose(1, 2, 0)
    method = "percentile bootstrap over problems"
    whole = band(problems.whole.ratio(), _resampled(problems.whole, weights), level, method).at(())
    inside, outside = (band(e, x, level, method) for e, x in zip(estimate, draws, strict=True))
    p_random = rank_p(estimate[0], random)
    return Separation(
        tuple(ks),
        problems.d,
        problems.n,
        inside,
        outside,
        whole,
        random,
        p_random,
        np.array(p_pairing),
        scale_p(problems, bases, estimate[0], separates(estimate[0], estimate[1], p_random, 0.0), seed=seed),
    )


def rank_p(values: Float[np.ndarray, "*h s"], random: Float[np.ndarray, "b s"]) -> Float[np.ndarray, "*h s"]:
    """One-sided rank p of each ratio among random ones at the same k: (1 + as small)/(1 + draws)."""
    below = (random <= np.asarray(values)[..., None, :] * (1 + 1e-12)).sum(axis=-2)
    return (1 + below) / (1 + random.shape[0])


def _resampled(squares: Squares, weights: Array) -> Array:
    """ratio(S) of resampled problems (b,); a problem drawn twice is not another problem."""
    n = weights.shape[1]
    across = weights @ np.sqrt(squares.cross) / n
    within = sum(np.vecdot(weights @ np.sqrt(side), weights) for side in (squares.one, squares.two))
    pairs = 2 * (n * n - np.vecdot(weights, weights))
    usable = (within > 0) & (pairs > 0)
    return np.divide(across * pairs, within, out=np.full_like(across, np.nan), where=usable)


def _p_pairing(
    problems: Problems, basis: NDArray[np.floating], cross: Array, wrong: NDArray[np.intp]
) -> float:
    one, two = (np.asarray(v @ basis, dtype=np.float64) for v in (problems.one, problems.two))
    middle = one.mean(axis=0)  # smaller numbers, the same distances
    one, two = one - middle, two - middle
    own, other = np.vecdot(one, one), np.vecdot(two, two)
    apart = np.sqrt(np.maximum(own[:, None] + other[None] - 2 * one @ two.T, 0.0))
    found = apart[np.arange(problems.n), wrong].mean(axis=1)
    observed = float(np.sqrt(cross).mean())
    return float((1 + (found <= observed * (1 + 1e-9)).sum()) / (1 + len(wrong)))
