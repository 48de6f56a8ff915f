"""Does a subspace Z hold what two languages share about a problem, or what tells them apart?

Each problem has one vector in either language. Separation is a ratio of Euclidean distances,

    ratio(S) = mean ‖P_S(a_i − b_i)‖ / mean over languages and i ≠ j of ‖P_S(a_i − a_j)‖,

cross-lingual same-problem over within-language different-problem, for S = Z, its complement and the whole
space. A random k-subspace has ratio(Z) < ratio(Z⊥) about half the time, so that inequality alone says
nothing: "Z separates" also asks that few random subspaces have as small a ratio.
Distances come from cumulative squared coefficients; nothing of size d × d is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.geometry.layers import triangular_draw
from engine.geometry.z import check_basis
from engine.stats.uncertainty import Band, Interval, band, resample_weights

Array = NDArray[np.float64]
Bases = NDArray[np.floating] | Mapping[int, NDArray[np.floating]]
"""A basis (d, k_max) nested in k, or a mapping k → basis (d, k) where they are built per k."""

DRAWS, PAIRINGS = 200, 999
ALPHA = 0.05


@dataclass(frozen=True)
class Problems:
    """Vectors of the same problems in two languages, row i of both being problem i; (n, d) float64."""

    one: Array
    two: Array

    @classmethod
    def of(cls, one: Float[np.ndarray, "n d"], two: Float[np.ndarray, "n d"]) -> Problems:
        """Checked problems.

        Raises:
            AnalysisError: other shapes, fewer than 4 problems, or values that are not finite.
        """
        a, b = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
        if a.ndim != 2 or a.shape != b.shape or a.shape[0] < 4:
            raise AnalysisError(
                "Separation compares the same problems in two languages.",
                expected="two arrays (n, d) of one shape, n ≥ 4",
                given=f"shapes {a.shape} and {b.shape}",
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise AnalysisError("Some values are not finite.", expected="finite values", given="NaN or inf")
        return cls(a, b)

    @property
    def d(self) -> int:
        return int(self.one.shape[1])

    @property
    def n(self) -> int:
        return int(self.one.shape[0])

    @cached_property
    def centred(self) -> tuple[Array, Array]:
        """Both languages about their own means, which leaves distances within a language as they are."""
        return self.one - self.one.mean(axis=0), self.two - self.two.mean(axis=0)

    @cached_property
    def shift(self) -> Array:
        """What the language changes of each problem, two − one."""
        return self.two - self.one

    @cached_property
    def whole(self) -> Squares:
        """Squared distances in the whole space."""
        cross = np.vecdot(self.shift, self.shift)
        one, two = (_squares(c) for c in self.centred)
        return Squares(one, two, cross)


@dataclass(frozen=True)
class Squares:
    """Squared distances in one subspace: within either language (*, n, n), and across (*, n)."""

    one: Array
    two: Array
    cross: Array

    def __sub__(self, other: Squares) -> Squares:
        pairs = zip((self.one, self.two, self.cross), (other.one, other.two, other.cross), strict=True)
        one, two, cross = (np.maximum(a - b, 0.0) for a, b in pairs)
        return Squares(one, two, cross)

    def ratio(self) -> Array:
        """ratio(S), one for each leading index; NaN where all problems coincide within a language."""
        n = self.cross.shape[-1]
        within = (_root_sum(self.one) + _root_sum(self.two)) / (2 * n * (n - 1))
        across = np.sqrt(self.cross).mean(axis=-1)
        return np.divide(across, within, out=np.full_like(across, np.nan), where=within > 0)


def _squares(rows: Array) -> Array:
    """Squared distances between rows (*, n, k) from their Gram matrix, (*, n, n)."""
    gram = rows @ np.swapaxes(rows, -1, -2)
    own = np.einsum("...ii->...i", gram)
    found = own[..., :, None] + own[..., None, :] - 2 * gram
    np.maximum(found, 0.0, out=found)
    index = np.arange(found.shape[-1])
    found[..., index, index] = 0.0
    return found


def _root_sum(squares: Array) -> Array:
    return np.sqrt(squares).sum(axis=(-2, -1))


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
        found = Squares(_squares(one), _squares(two), np.vecdot(shift, shift))
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
        more = Squares(_squares(one), _squares(two), np.vecdot(shift, shift))
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


def random_ratios(
    problems: Problems,
    ks: tuple[int, ...],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "b s"]:
    """ratio(Z) of uniformly random k-subspaces, nested in k within a draw.

    Only the part of a random frame inside the span of the data matters. For orthonormal coordinates Y of the
    data in r ≤ 2n dimensions that part is G T⁻¹ with G (r, k) Gaussian and T the Cholesky factor of
    GᵀG + RᵀR, R the triangular factor of a Gaussian (d − r, k): a QR decomposition of a Gaussian (d, k)
    whose lower rows are never drawn. Exact, at the cost of r instead of d.

    Args:
        advance: told (done, total) draws.
    """
    rng, n, d = np.random.default_rng(seed), problems.n, problems.d
    rows = np.concatenate([*problems.centred, problems.shift.mean(axis=0, keepdims=True)])
    inner = rows if d <= rows.shape[0] else np.linalg.qr(rows.T)[1].T
    width, most = inner.shape[1], max(ks)
    at_once = max(1, min(draws, 200_000 // (n * n), 4_000_000 // (width * most)))
    scale = float(np.abs(inner).max(initial=0.0)) or 1.0  # ratios have no unit: keeps float32 in range
    inner = (inner / scale).astype(np.float32)
    found = []
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        gaussian = rng.standard_normal((count, width, most), dtype=np.float32)
        gram = (gaussian.transpose(0, 2, 1) @ gaussian).astype(np.float64)
        if d > width:
            below = triangular_draw(rng, d - width, most, count)
            gram += below.transpose(0, 2, 1) @ below
        turn = np.linalg.inv(np.linalg.cholesky(gram)).transpose(0, 2, 1).astype(np.float32)
        found.append(_nested_ratios(inner @ gaussian @ turn, n, ks))
        if advance is not None:
            advance(begin + count, draws)
    return np.concatenate(found)


def _nested_ratios(coefficients: NDArray[np.float32], n: int, ks: tuple[int, ...]) -> Array:
    """ratio(S) of the first k columns for every k: (draws, 2n + 1, columns) → (draws, len(ks)).

    Rows: both languages about their means, and the mean shift.
    """
    sides = coefficients[:, :n], coefficients[:, n : 2 * n]
    shift = sides[1] - sides[0] + coefficients[:, 2 * n :]
    across2 = np.cumsum(shift * shift, axis=2, dtype=np.float64)[:, :, np.array(ks) - 1]
    within = np.zeros((len(coefficients), len(ks)))
    for side in sides:
        running = np.zeros((len(side), n, n), dtype=np.float32)
        root = np.empty_like(running)
        for at, (start, stop) in enumerate(zip((0, *ks[:-1]), ks, strict=True)):
            part = side[:, :, start:stop]
            own = np.vecdot(part, part)[:, :, None]
            one = np.ones_like(own)
            # ‖x‖² + ‖y‖² − 2⟨x, y⟩ of all pairs as one product
            running += np.concatenate([-2 * part, own, one], 2) @ np.concatenate(
                [part, one, own], 2
            ).transpose(0, 2, 1)
            np.sqrt(np.maximum(running, 0.0, out=root), out=root)
            within[:, at] += root.sum(axis=(1, 2), dtype=np.float64) - np.einsum("bii->b", root)
    mean = within / (2 * n * (n - 1))
    across = np.sqrt(across2).mean(axis=1)
    return np.divide(across, mean, out=np.full_like(across, np.nan), where=mean > 0)


@dataclass(frozen=True)
class Separation:
    """Separation by Z and by its complement, for several k.

    Attributes:
        ks, d, n: dimensions, model width, problems.
        inside, outside: ratio(Z) and ratio(Z⊥) over ks, bootstrap over problems. full: the whole space.
        random: (draws, ks) ratio(Z) of random k-subspaces.
        p_random: share of random k-subspaces with a ratio at least as small (one-sided rank).
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

    @property
    def separates(self) -> NDArray[np.bool_]:
        return separates(self.inside.estimate, self.outside.estimate, self.p_random)


def separates(inside: Array, outside: Array, p_random: Array) -> NDArray[np.bool_]:
    """The rule: ratio(Z) < ratio(Z⊥), and p < 0.05 against random k-subspaces."""
    found: NDArray[np.bool_] = (np.asarray(inside) < np.asarray(outside)) & (np.asarray(p_random) < ALPHA)
    return found


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
    """Both ratios at every k with intervals, and both nulls.

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
    return Separation(
        tuple(ks),
        problems.d,
        problems.n,
        inside,
        outside,
        whole,
        random,
        rank_p(estimate[0], random),
        np.array(p_pairing),
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
