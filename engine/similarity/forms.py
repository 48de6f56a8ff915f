"""Weighted HSIC of resampled prompts: the exact formulas and their fast first-order form.

Notation. Units g (a prompt, or a pair of prompts) of m_g prompts are drawn c_g times; w_i = c_g(i),
N = Σ w_i. A is the U-centred Gram (Székely & Rizzo 2014): zero diagonal, zero row sums, and the
same off the diagonal as K up to a sum f_i + f_j. With D diagonal, K = H(A + D)H exactly, where
D_i = (K_ii − tr K/(n(n−1)))·n/(n−2). B and E are the same for L.

Debiased. In a resample the pairs (i, j) that are copies of one prompt are dropped, pairs of
prompts of two units weigh c_g c_h, and two prompts of one unit weigh c_g (each copy of the unit
brings its own pair once). The debiased HSIC of a full sample is the off-diagonal inner product of
K̃ and L̃ after projecting both onto the complement of all matrices f_i + f_j, because that
projection is U-centring. The same definition under pair weights ω_ij gives

    H(w) = Σ_{i≠j} ω_ij K_ij L_ij − ⟨K, ΠL⟩_ω ,   (ΠL)_ij = f_i + f_j,

with f from the normal equations Σ_j ω_ij (L_ij − f_i − f_j) = 0. Put a_i = Σ_j ω_ij A_ij / c_g and
b_i likewise, a_g, b_g their sums over the unit, η_g = N − m_g c_g + m_g − 2 and
ε_g = N + 2m_g(1 − c_g) − 2. Solving,

    H(w) = Σ ω_ij A_ij B_ij − 2 [ Σ_i (c_g/η_g) a_i b_i − Σ_g c_g(1−c_g)/(η_g ε_g) a_g b_g
           − (Σ_g (c_g/ε_g) a_g)(Σ_g (c_g/ε_g) b_g) / (1 + Σ_g c_g m_g/ε_g) ].

At c = 1 this is n(n−3) times Song et al.'s estimate. H(w) is unchanged by adding f_i + f_j to
either matrix, so centring never matters; its expectation for independent sides is exactly 0, since
the projection of a matrix with constant expectation off the diagonal vanishes; and the factor that
would turn it into an unbiased HSIC depends on w alone and cancels in CKA.

Biased. With X = A + D, N²·HSIC_b = wᵀ(X∘Y)w − (2/N) Σ_i w_i (Xw)_i (Yw)_i + (wᵀXw)(wᵀYw)/N².

Fast form. A1 = 0 makes Xw = A(w − 1) + D∘w, so the terms beyond the first are of relative order 1/N and
vanish to first order in w − 1. They are replaced by the part that doesn't average out: products
of weights of different units, which have mean zero, are dropped. The left-out part has a standard
deviation of about 1.3/√n of the statistic's standard error (measured over isotropic, power-law,
clustered and heavy-tailed data), is uncorrelated with it, and is checked on a few resamples each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.similarity.grams import as_centred

Array = NDArray[np.float64]
T = TypeVar("T", bound=np.floating)


@dataclass(frozen=True)
class Units:
    """Prompts sorted so that the prompts of one unit are neighbours.

    Attributes:
        order: (n,) prompt indices in that order.
        starts: (G,) where each unit begins in that order.
        unit: (n,) unit of each sorted prompt.
        sizes: (G,) prompts in each unit.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    unit: NDArray[np.intp]
    sizes: NDArray[np.float64]

    @classmethod
    def of(cls, unit: NDArray[np.intp]) -> Units:
        """From the unit index 0..G−1 of each prompt."""
        order = np.argsort(unit, kind="stable")
        sizes = np.bincount(unit)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return cls(order, starts, unit[order], sizes.astype(np.float64))

    @property
    def single(self) -> bool:
        """Whether every prompt is its own unit."""
        return self.order.size == self.starts.size

    def sum(self, values: NDArray[T], axis: int = -1) -> NDArray[T]:
        """Sums over the prompts of each unit along one axis."""
        return values if self.single else np.add.reduceat(values, self.starts, axis=axis)


@dataclass(frozen=True)
class Side:
    """One Gram matrix, prepared for resampling (prompts sorted by unit, scaled to mean variance 1).

    Attributes:
        a: (n, n) float32 U-centred Gram, in the caller's buffer.
        columns: (n, G) its columns summed over each unit; `a` itself for units of one prompt.
        own: (n,) sum of a prompt's entries with its own unit. d: (n,) the diagonal D.
        block: (G,) sum of A over each unit's block. alive: False for a side without variance.
    """

    a: NDArray[np.float32]
    columns: NDArray[np.float32]
    own: Array
    d: Array
    block: Array
    alive: bool


@dataclass(frozen=True)
class Pair:
    """What remains of A∘B besides its off-diagonal form.

    Attributes:
        within: (G,) sums of A∘B inside each unit. diagonal: (G,) sums of D∘E.
        plain, over_n: (2, 3G) coefficients of the powers (c, c², c³), rows debiased and biased.
        constant: (2,) constant to go with `over_n`.
        full: (2,) numerators of the full sample, every unit once.
    """

    within: Array
    diagonal: Array
    plain: Array
    over_n: Array
    constant: Array
    full: Array


def prepare(k: Float[np.ndarray, "n n"], units: Units, out: NDArray[np.float32]) -> Side:
    """U-centre a Gram matrix into `out` (n, n) and sum it over units."""
    n = k.shape[0]
    k = as_centred(k)
    if not np.array_equal(units.order, np.arange(n)):
        k = k[units.order[:, None], units.order]
    diagonal = np.diagonal(k).astype(np.float64)
    scale = float(diagonal.mean())
    alive = bool(np.isfinite(scale) and scale > 0)
    if not alive:
        out[...], diagonal = 0.0, np.zeros(n)
    else:
        diagonal /= scale
        np.multiply(k, k.dtype.type(1.0 / scale), out=out, casting="same_kind")
    trace = diagonal.sum()
    shift = (diagonal / (n - 2) - trace / (2 * (n - 1) * (n - 2))).astype(np.float32)
    out += shift[:, None]
    out += shift
    np.fill_diagonal(out, 0.0)
    columns = units.sum(out)
    own = np.zeros(n) if units.single else columns[np.arange(n), units.unit].astype(np.float64)
    return Side(out, columns, own, (diagonal - trace / (n * (n - 1))) * n / (n - 2), units.sum(own), alive)


def combine(x: Side, y: Side, units: Units, out: NDArray[np.float32]) -> tuple[Pair, NDArray[np.float32]]:
    """Multiply two sides entry by entry and collect the terms of the fast form.

    With δ = c − 1 and products of different units averaged out, Σ_i w_i (Xw)_i (Yw)_i becomes
    Σ_g δ²·spread + cδ²·inside + c³·DE + μ₂δ·outward + c²δ·mixed, where μ₂ = E c² = 2 − 1/G.

    Returns:
        The pair, and the (G, G) sums of A∘B over pairs of units with the diagonal zeroed (in `out`
        for units of one prompt).
    """
    product, n = np.multiply(x.a, y.a, out=out), x.a.shape[0]
    total = np.ones(n, dtype=np.float32) @ product
    matrix, within = product, np.zeros(units.sizes.size)
    full = float(total.sum(dtype=np.float64))
    if not units.single:
        matrix = units.sum(units.sum(product), axis=0)
        within = np.diagonal(matrix).astype(np.float64)
        total = np.einsum("ig,ig->g", x.columns, y.columns)
        np.fill_diagonal(matrix, 0.0)
    inside, mixed = units.sum(x.own * y.own), units.sum(x.d * y.own + y.d * x.own)
    outward = _times(x.d, y.columns) + _times(y.d, x.columns) - mixed
    spread = total.astype(np.float64) - inside
    pair = _pair(spread, outward, within, units.sum(x.d * y.d), inside, mixed, full, x.d.sum() * y.d.sum(), n)
    return pair, matrix


def fast_terms(spread: Array, d: Array, e: Array, outward: Array) -> Pair:
    """The terms of `combine` for units of one prompt, from Σ_i A_ih B_ih and (BD + AE)_h."""
    zero = np.zeros_like(spread)
    return _pair(spread, outward, zero, d * e, zero, zero, float(spread.sum()), d.sum() * e.sum(), d.size)


def _pair(
    spread: Array,
    outward: Array,
    within: Array,
    diagonal: Array,
    inside: Array,
    mixed: Array,
    full: float,
    traces: float,
    n: int,
) -> Pair:
    first, zero = (2.0 - 1.0 / within.size) * outward, np.zeros_like(within)
    plain = np.concatenate([within, zero, zero, zero, within + diagonal, zero])
    over_n = np.concatenate(
        [
            -2 * spread,
            spread,
            zero,
            -2 * spread + inside + first,
            spread - 2 * inside - mixed,
            inside + diagonal + mixed,
        ]
    )
    constant = np.array([spread.sum(), spread.sum() - first.sum()])
    biased = full + diagonal.sum() * (1 - 2 / n) + traces / n**2
    return Pair(
        within, diagonal, plain.reshape(2, -1), over_n.reshape(2, -1), constant, np.array([full, biased])
    )


def _times(vector: Array, columns: NDArray[np.float32]) -> Array:
    return (vector.astype(np.float32) @ columns).astype(np.float64)


def dense_forms(matrix: NDArray[np.float32], counts: NDArray[np.float32]) -> Array:
    """cᵀMc for each row of counts (B, G), evaluated directly: (B,)."""
    return np.vecdot(counts @ matrix, counts).astype(np.float64)


def fast_columns(pairs: tuple[Pair, ...], blocks: list[Array], diagonals: list[Array]) -> NDArray[np.float32]:
    """All coefficient columns (14, 3G) of one layer: 4 for each pair (xx, yy, xy), 1 for each side.

    Args:
        blocks: `Side.block` of x and y. diagonals: their D summed over units.
    """
    columns = [row for pair in pairs for row in (*pair.plain, *pair.over_n)]
    columns += [
        np.concatenate([-2 * block, block + d, np.zeros_like(d)])
        for block, d in zip(blocks, diagonals, strict=True)
    ]
    return np.array(columns, dtype=np.float32)


def fast_numerators(
    between: Array, terms: Array, pairs: tuple[Pair, ...], blocks: tuple[float, float], total: Array
) -> Array:
    """Numerators of all resamples by the fast form.

    Args:
        between: (B, 3) values of Σ_{g≠h} c_g c_h (A∘B)_gh for the pairs xx, yy, xy.
        terms: (B, 14) powers of the counts times `fast_columns`.
        blocks: the sums of `Side.block` of x and y.
        total: (B,) N of each resample.

    Returns:
        (3, 2, B): for each pair, H(w) and N²·HSIC_b(w).
    """
    own = [terms[:, 12 + i] + block for i, block in enumerate(blocks)]
    out = np.empty((3, 2, total.size))
    for i, (left, right) in enumerate(((0, 0), (1, 1), (0, 1))):
        plain, over_n = terms[:, 4 * i : 4 * i + 2].T, terms[:, 4 * i + 2 : 4 * i + 4].T
        out[i] = between[:, i] + plain - 2 / total * (over_n + pairs[i].constant[:, None])
        out[i, 1] += own[left] * own[right] / total**2
    return out


def exact_numerators(
    x: Side, y: Side, pairs: tuple[Pair, ...], between: Array, counts: NDArray[np.float32], units: Units
) -> Array:
    """Numerators (3, 2, B) of the pairs xx, yy, xy, straight from the formulas above.

    Args:
        between: (B, 3) as in `fast_numerators`. counts: (B, G).
    """
    blocks = [
        _exact_block(x, y, pairs, between[i : i + 128], counts[i : i + 128], units)
        for i in range(0, counts.shape[0], 128)
    ]
    return np.concatenate(blocks, axis=2)


def _divisors(c: Array, m: Array, n: Array) -> tuple[Array, Array]:
    """η and ε (B, G), 1 where a unit wasn't drawn.

    ε_g is 0 where a unit makes up half of a resample. The two terms in 1/ε_g cancel there and H(w) is smooth
    in N; such resamples are evaluated at N(1 + 1e-7).
    """
    undrawn = c == 0
    drop = c * m - m + 2
    at_pole = ((n[:, None] == drop) | (n[:, None] == 2 * drop - 2)) & ~undrawn
    total = np.where(at_pole.any(axis=1), n * (1 + 1e-7), n)[:, None]
    return np.where(undrawn, 1.0, total - drop), np.where(undrawn, 1.0, total - 2 * drop + 2)


def _exact_block(
    x: Side, y: Side, pairs: tuple[Pair, ...], between: Array, counts: NDArray[np.float32], units: Units
) -> Array:
    c, m = counts.astype(np.float64), units.sizes
    w, n = c[:, units.unit], c @ m
    eta, eps = _divisors(c, m, n)
    ce, twice = c / eps, c * (1 - c) / (eta * eps)
    weight, norm = (c / eta)[:, units.unit], 1 + ce @ m
    a, xw, a_g, a_all, x_all = [], [], [], [], []
    for side in (x, y):
        summed = counts @ (side.a if units.single else side.columns.T)
        outside = summed.astype(np.float64) - w * side.own
        a.append(outside + side.own)
        xw.append(outside + w * (side.own + side.d))
        a_g.append(units.sum(a[-1]))
        a_all.append(np.vecdot(ce, a_g[-1]))
        x_all.append(np.vecdot(w, xw[-1]))
    out = np.empty((3, 2, c.shape[0]))
    for i, (left, right) in enumerate(((0, 0), (1, 1), (0, 1))):
        correction = np.vecdot(weight * a[left], a[right]) - np.vecdot(twice * a_g[left], a_g[right])
        correction -= a_all[left] * a_all[right] / norm
        out[i, 0] = between[:, i] + c @ pairs[i].within - 2 * correction
        out[i, 1] = between[:, i] + (c * c) @ (pairs[i].within + pairs[i].diagonal)
        out[i, 1] += x_all[left] * x_all[right] / n**2 - 2 / n * np.vecdot(w * xw[left], xw[right])
    return out
