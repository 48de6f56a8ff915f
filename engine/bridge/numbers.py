"""The bridge: are one language's coordinates in Z a linear map of the other's?

Z_zh ≈ Z_en W, both (n problems, k coordinates). With as many coordinates as problems every W fits, so the
figure to read is the leave-one-out R², against pairs permuted at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.stats.permuted import Groups, random_orders, smallest_p

Array = NDArray[np.float64]
Index = NDArray[np.intp]

MOST_NUMBERS = 1_000_000
"""Numbers that permuting pairs holds at a time."""
DEFAULT_ALPHAS = tuple(float(a) for a in np.logspace(-3, 5, 17))
THIN, NONLINEAR, LEVEL = 0.8, 0.5, 0.05


@dataclass(frozen=True)
class Orthogonality:
    """‖WᵀW − I‖_F / k, beside what two maps of no interest give.

    Attributes:
        value: of the fitted W. zero: of W = 0, 1/√k.
        random: root mean square for Gaussian W of the same size.
    """

    value: float
    zero: float
    random: float


@dataclass(frozen=True)
class Bridge:
    """A fitted bridge.

    Attributes:
        w: (k, k) at the penalty in use, on centred coordinates.
        method: "ridge" or "minimum_norm". alpha: penalty in use (0 for minimum norm).
        alphas, r2_path: (a,) penalties and their leave-one-out R²; empty for minimum norm.
        r2_train, r2_loo: 1 − Σ‖error‖²/Σ‖y − ȳ‖².
        orthogonality, spectrum: of W; singular values (k,), descending.
        r2_procrustes: leave-one-out R² of the best rotation, refitted n times.
        null: (draws,) leave-one-out R² with pairs permuted, the penalty chosen anew for each.
        p: one-sided rank of r2_loo among them.
        n, k: problems and coordinates.
        least_p: the smallest p that permuting pairs, within groups where there are any, can give.
    """

    w: Float[np.ndarray, "k k"]
    method: str
    alpha: float
    alphas: Array
    r2_path: Array
    r2_train: float
    r2_loo: float
    orthogonality: Orthogonality
    spectrum: Array
    r2_procrustes: float
    null: Array
    p: float
    n: int
    k: int
    least_p: float = 0.0

    @property
    def untestable(self) -> bool:
        """Whether problems of one group are too few for any p below 0.05."""
        return self.least_p >= LEVEL

    @property
    def underdetermined(self) -> bool:
        """Whether n ≤ k: a training R² of 1 then means nothing."""
        return self.n <= self.k

    @property
    def words(self) -> str:
        """What the figures say; see `describe`.

        Nothing where n ≤ k: linear data look nonlinear there; nor where pairs have too few orders in groups.
        """
        if self.underdetermined:
            return f"Too few problems to tell: {self.n}, where {self.k} coordinates need more than {self.k}."
        if self.untestable:
            few = f"exchanging pairs gives p = {self.least_p:.2g} at the least"
            return f"Too few problems of one category to tell: {few}."
        return describe(self.r2_loo, self.p, self.r2_procrustes, float(np.median(self.null)))


def describe(r2_loo: float, p: float, r2_procrustes: float, known: float = 0.0) -> str:
    """The conclusion, from left-out problems only.

    Rule: none unless p < 0.05 against permuted pairs. "Thin wrapper" above 0.8, "nonlinear or language-bound"
    below 0.5, "partly linear" between; "rotation-like" only if the best rotation itself reaches 0.8. Where
    pairs permuted within categories predict already, as the categories' means do, both R² count by the share
    of the rest that they explain, (R² − known)/(1 − known).

    Args:
        known: the median R² of permuted pairs; below 0 it counts as 0.
    """
    known = min(max(known, 0.0), 1.0) if np.isfinite(known) else 0.0
    beyond, turns = ((r2 - known) / (1 - known) if known < 1 else 0.0 for r2 in (r2_loo, r2_procrustes))
    if not p < LEVEL:
        figures = (
            f"the leave-one-out R² of {r2_loo:.2f} is not shown to be above permuted pairs (p = {p:.2g})"
        )
        return f"No bridge found: {figures}."
    if beyond > THIN:
        kind = "a thin wrapper: the languages' coordinates are nearly linear maps of each other"
    elif beyond < NONLINEAR:
        kind = "mostly nonlinear or language-bound: less than half carries over linearly"
    else:
        kind = "partly linear"
    turned = " The map is rotation-like." if turns > THIN else ""
    alone = f", permuted pairs {known:.2f}" if known >= 0.005 else ""
    return f"The bridge is {kind} (leave-one-out R² {r2_loo:.2f}{alone}, p = {p:.2g}).{turned}"


@dataclass(frozen=True)
class _Design:
    """x = mean + u · diag(sigma) · vᵀ, with what H leaves out of the rows' space. No n × n matrix is made.

    Attributes:
        outside: (n,) diagonal of the projector onto what neither the intercept nor the coordinates reach;
            exactly 0 where they reach everything.
    """

    u: Array
    sigma: Array
    v: Array
    outside: Array

    @classmethod
    def of(cls, x: Array, center: bool) -> _Design:
        n = len(x)
        u, sigma, vt = np.linalg.svd(x - x.mean(axis=0) if center else x, full_matrices=False)
        keep = sigma > max(x.shape) * np.finfo(np.float64).eps * sigma.max(initial=0.0)
        u, sigma, vt = u[:, keep], sigma[keep], vt[keep]
        reached = np.vecdot(u, u) + (1 / n if center else 0.0)
        saturated = keep.sum() == n - center
        return cls(u, sigma, vt.T, np.zeros(n) if saturated else 1 - reached)

    def shrinkage(self, alpha: float) -> Array:
        """What I − H does to the directions u, up to a factor that left-out errors don't depend on, (r,).

        For α → 0 with nothing outside, (I − H)/α tends to u diag(σ⁻²) uᵀ, the (bordered) inverse Gram.
        """
        if alpha == 0.0:
            return np.zeros_like(self.sigma) if self.outside.any() else self.sigma**-2
        return np.asarray(alpha / (self.sigma**2 + alpha))

    def share(self, alpha: float) -> Array | None:
        """The diagonal of I − H (n,), up to the same factor; None where a problem can't be left out."""
        found = (self.u**2) @ self.shrinkage(alpha) + self.outside
        return found if (found > 1e-12 * found.max(initial=0.0)).all() else None

    def left_over(self, alpha: float, y: Array) -> Array:
        """(I − H) y, up to the same factor; y is centred unless there is no intercept."""
        inside = self.u.T @ y
        rest = y - self.u @ inside if self.outside.any() else 0.0
        return np.asarray(self.u @ (self.shrinkage(alpha)[:, None] * inside) + rest)

    def weights(self, alpha: float, y: Array) -> Array:
        return (self.v * (self.sigma / (self.sigma**2 + alpha))) @ (self.u.T @ y)


def fit_bridge(
    x: Float[np.ndarray, "n k"],
    y: Float[np.ndarray, "n k"],
    *,
    method: Literal["ridge", "minimum_norm"] = "ridge",
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    center: bool = True,
    groups: Groups | None = None,
    draws: int = 199,
    seed: int = 0,
) -> Bridge:
    """Fits y ≈ x W with an unpenalised intercept and judges it on left-out problems.

    Left-out errors are exact without refitting: with G = I − H, e_i = (G y)_i / G_ii, for ridge (Allen 1974)
    and, as its limit, for minimum-norm interpolation, where G is the inverse Gram matrix, bordered for the
    intercept. The penalty with the smallest left-out error is used; permuted pairs choose theirs anew.

    Args:
        x, y: coordinates of the same problems in the same basis, row by row.
        center: False fits without an intercept and centres the denominator of R² only.
        groups: (n,) kind of each problem; pairs are then permuted among problems of one kind only, which
            a bridge that merely knows the kind does not survive. See `Bridge.untestable`.

    Raises:
        AnalysisError: other shapes, fewer than 4 problems, a constant side, penalties that are not positive.
    """
    x, y, penalties = _checked(x, y, method, alphas)
    design = _Design.of(x, center)
    target = y - y.mean(axis=0) if center else y
    total = float(((y - y.mean(axis=0)) ** 2).sum())
    path = _left_out_r2(design, penalties, target, total)
    best = int(np.argmax(path))
    w = design.weights(penalties[best], target)
    fitted = (x - x.mean(axis=0) if center else x) @ w
    null = _permuted_r2(design, penalties, target, random_orders(len(y), groups, draws, seed))
    return Bridge(
        w=w,
        method=method,
        alpha=penalties[best],
        alphas=np.array(penalties if method == "ridge" else ()),
        r2_path=path if method == "ridge" else np.empty(0),
        r2_train=1 - float(((target - fitted) ** 2).sum()) / total,
        r2_loo=float(path[best]),
        orthogonality=orthogonality(w),
        spectrum=np.asarray(np.linalg.svd(w, compute_uv=False), dtype=np.float64),
        r2_procrustes=procrustes_r2(x, y),
        null=null,
        p=float((1 + (null >= path[best]).sum()) / (1 + draws)),
        n=len(x),
        k=x.shape[1],
        least_p=smallest_p(draws, len(x), groups),
    )


def _left_out_r2(design: _Design, penalties: Sequence[float], y: Array, total: float) -> Array:
    """Leave-one-out R² for each penalty, (a,); −inf where a problem can't be left out."""
    found = np.full(len(penalties), -np.inf)
    for index, alpha in enumerate(penalties):
        share = design.share(alpha)
        if share is not None:
            errors = design.left_over(alpha, y) / share[:, None]
            found[index] = 1 - float((errors**2).sum()) / total
    return found


def _permuted_r2(design: _Design, penalties: Sequence[float], y: Array, orders: Index) -> Array:
    """Largest leave-one-out R² over the penalties for each reordering of the rows of y, (draws,).

    y as `_Design` needs it: centred unless there is no intercept. With c = Uᵀy inside the rows' span and o
    outside it, a left-out error is (o + U f c)_i / G_ii; its square is expanded so that a penalty costs
    products with r and not with n rows.
    """
    n, k = y.shape
    forms = [form for alpha in penalties if (form := _Form.of(design, alpha)) is not None]
    least = np.full(len(orders), np.inf)
    size = max(1, MOST_NUMBERS // (n * k))
    for start in range(0, len(orders) if forms else 0, size):
        part = slice(start, start + size)
        shuffled = y[orders[part].T].reshape(n, -1)
        inside = design.u.T @ shuffled
        outside = shuffled - design.u @ inside if design.outside.any() else np.zeros((n, 0))
        length = outside**2
        for form in forms:
            squared = np.einsum("ij,ij->j", inside, form.inner @ inside)
            if outside.size:
                squared += form.weights @ length
                squared += 2 * np.einsum("ij,ij->j", inside, form.cross @ outside)
            least[part] = np.minimum(least[part], squared.reshape(-1, k).sum(axis=1))
    return 1 - least / float(((y - y.mean(axis=0)) ** 2).sum())


@dataclass(frozen=True)
class _Form:
    """Squared left-out errors at one penalty: weights · o² + 2 c · (cross o) + c · (inner c)."""

    weights: Array
    cross: Array
    inner: Array

    @classmethod
    def of(cls, design: _Design, alpha: float) -> _Form | None:
        """None where a problem can't be left out."""
        share = design.share(alpha)
        if share is None:
            return None
        scaled, weights = design.u * design.shrinkage(alpha), 1 / share**2
        cross = (scaled * weights[:, None]).T
        return cls(weights, cross, cross @ scaled)


@dataclass(frozen=True)
class Profile:
    """Bridges at several places, judged together.

    Attributes:
        r2_loo: (places,). null_low, null_high: (places,) central 95 % of each place's null.
        largest: (draws,) the largest R² over all places for each reordering of the pairs.
        p: (places,) one-sided rank of each R² among `largest`: holds for all places at once
            (Westfall & Young 1993).
        least_p: as of a `Bridge`.
    """

    r2_loo: Array
    null_low: Array
    null_high: Array
    largest: Array
    p: Array
    least_p: float = 0.0


def profile(
    places: Iterable[tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]],
    *,
    method: Literal["ridge", "minimum_norm"] = "ridge",
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    center: bool = True,
    groups: Groups | None = None,
    draws: int = 99,
    seed: int = 0,
) -> Profile:
    """Leave-one-out R² at every place, e.g. every block; the same reorderings serve all places.

    Raises:
        AnalysisError: as `fit_bridge`; or no place.
    """
    values, nulls = [], []
    for one, other in places:
        x, y, penalties = _checked(one, other, method, alphas)
        design, target = _Design.of(x, center), y - y.mean(axis=0) if center else y
        total = float(((y - y.mean(axis=0)) ** 2).sum())
        values.append(_left_out_r2(design, penalties, target, total).max())
        nulls.append(_permuted_r2(design, penalties, target, random_orders(len(y), groups, draws, seed)))
    if not values:
        raise AnalysisError("A profile needs places.", expected="1 or more", given="none")
    found, null = np.array(values), np.array(nulls)
    largest = null.max(axis=0)
    low, high = np.quantile(null, [0.025, 0.975], axis=1)
    p = (1 + (largest >= found[:, None]).sum(axis=1)) / (1 + draws)
    return Profile(found, low, high, largest, p, smallest_p(draws, len(y), groups))


def orthogonality(w: Float[np.ndarray, "k k"]) -> Orthogonality:
    """‖WᵀW − I‖_F/k with its two references.

    For Gaussian entries of variance s², E‖WᵀW − I‖² = s⁴k²(2k + 1) − 2s²k² + k (moments of a Wishart
    matrix); s² = ‖W‖²/k².
    """
    k = w.shape[1]
    variance = float((w**2).sum()) / k**2
    expected = variance**2 * k**2 * (2 * k + 1) - 2 * variance * k**2 + k
    value = float(np.linalg.norm(w.T @ w - np.eye(k))) / k
    return Orthogonality(value, float(1 / np.sqrt(k)), float(np.sqrt(max(expected, 0.0))) / k)


def random_spectrum(
    k: int, *, draws: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Central range of each singular value, descending, of Gaussian (k, k) matrices with ‖W‖_F = 1."""
    drawn = np.random.default_rng(seed).normal(size=(draws, k, k))
    drawn /= np.linalg.norm(drawn, axis=(1, 2), keepdims=True)
    values = np.linalg.svd(drawn, compute_uv=False)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def procrustes_r2(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "n k"]) -> float:
    """Leave-one-out R² of the best rotation (Schönemann 1966), fitted anew without each problem.

    With dx and dy the deviations of problem i from all means, the means without it lie dx/(n − 1) and
    dy/(n − 1) off and the cross-products are less by dx·dyᵀ·n/(n − 1): one product with n rows serves all.
    """
    n = len(x)
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    whole, squared = dx.T @ dy, 0.0
    for one, other in zip(dx, dy, strict=True):
        u, _, vt = np.linalg.svd(whole - np.outer(one, other) * (n / (n - 1)))
        squared += float(((other - one @ u @ vt) ** 2).sum()) * (n / (n - 1)) ** 2
    return 1 - squared / float((dy**2).sum())


def _checked(
    x: Array, y: Array, method: str, alphas: Sequence[float]
) -> tuple[Array, Array, tuple[float, ...]]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or len(x) < 4:
        raise AnalysisError(
            "A bridge needs the same problems in both languages.",
            expected="two arrays (problems, coordinates) of one shape, 4 problems or more",
            given=f"shapes {x.shape} and {y.shape}",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not x.std() or not y.std(axis=0).any():
        raise AnalysisError(
            "The coordinates cannot be bridged.", expected="finite numbers that vary", given="others"
        )
    if method not in ("ridge", "minimum_norm"):
        raise AnalysisError("Unknown method.", expected="ridge or minimum_norm", given=repr(method))
    penalties = (0.0,) if method == "minimum_norm" else tuple(float(alpha) for alpha in alphas)
    if method == "ridge" and not (penalties and all(np.isfinite(a) and a > 0 for a in penalties)):
        raise AnalysisError("Ridge needs penalties.", expected="alphas > 0, at least one", given=alphas)
    return x, y, penalties
