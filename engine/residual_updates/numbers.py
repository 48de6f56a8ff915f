"""Residual updates R: how much of what a block adds to the stream lies in a subspace Z.

Δ_u = state(u + 1) − state(u) of the mean-pooled residual stream is what block u adds; on the axis it is
"u−1→u" (block 0's own update is "−1→0"). R(u) = mean‖P_Z Δ‖/mean‖P_Z⊥ Δ‖ over prompts. An update that
has nothing to do with Z does not give R = 1 but the much smaller chance value of `chance_ratio`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, stdtrit

from engine.errors import AnalysisError
from engine.geometry.z import check_basis
from engine.residual_updates.norms import (
    MeanNorms,
    UpdateNorms,
    mean_norms,
    parts_apart,
    span,
    update_label,
    update_norms,
    updates,
)
from engine.stats.scales import ScaleNull
from engine.stats.uncertainty import (
    Band,
    Groups,
    band,
    energy_p_value,
    holm,
    random_subspace_moments,
    resample_weights,
)

__all__ = [
    "MeanNorms",
    "ResidualUpdates",
    "UpdateNorms",
    "UpdateSplit",
    "chance_ratio",
    "mean_norms",
    "residual_updates",
    "split_updates",
    "update_label",
    "update_norms",
    "updates",
]

ROUNDED = 0.5
"""Share of an update's length from which on it is called rounding: a quarter of its energy."""
Array = NDArray[np.float64]
Kind = Literal["ratio_of_means", "mean_of_ratios"]


def chance_ratio(d: int, k: int, kind: Kind = "ratio_of_means") -> float:
    """R of an update whose direction is unrelated to a k-dimensional Z in R^d.

    ‖P_Z u‖² of a uniformly random direction u is Beta(k/2, (d−k)/2) distributed, which gives
    ratio of means Γ((k+1)/2)Γ((d−k)/2)/[Γ(k/2)Γ((d−k+1)/2)], about √(k/(d−k)), and
    mean of ratios Γ((k+1)/2)Γ((d−k−1)/2)/[Γ(k/2)Γ((d−k)/2)] (infinite for d − k = 1).
    """
    if not 1 <= k < d:
        raise AnalysisError(
            "No chance value for this subspace.", expected=f"1 ≤ k < d = {d}", given=f"k = {k}"
        )
    rest = d - k
    if kind == "ratio_of_means":
        log = gammaln((k + 1) / 2) - gammaln(k / 2) + gammaln(rest / 2) - gammaln((rest + 1) / 2)
    elif rest == 1:
        return float("inf")
    else:
        log = gammaln((k + 1) / 2) - gammaln(k / 2) + gammaln((rest - 1) / 2) - gammaln(rest / 2)
    return float(np.exp(log))


@dataclass(frozen=True)
class ResidualUpdates:
    """R of every block at one k.

    Attributes:
        blocks: which blocks these are. labels: axis labels. k, d, kind: what was computed.
        ratio: R with its bootstrap band. low_all, high_all: simultaneous limits over blocks.
        chance: R of an unrelated update. relative: R/chance.
        p_random: Holm-adjusted p of each block's energy fraction in Z being this large in a random
            k-subspace: the larger p of uniformly random ones and of those that keep Z's share of every
            coordinate. p_random_low: the same for being this small.
        languages: R of each language. differences: R of one language minus R of another.
        differences_all: (low, high) of each difference, simultaneous over blocks.
        norm: mean ‖Δ‖ of each block. rounding: share of that which is rounding.
        verdict: the finding in words, against chance and against 1.
    """

    blocks: tuple[int, ...]
    labels: tuple[str, ...]
    k: int
    d: int
    kind: str
    ratio: Band
    low_all: Array
    high_all: Array
    chance: float
    relative: Array
    p_random: Array
    p_random_low: Array
    languages: dict[str, Band]
    differences: dict[tuple[str, str], Band]
    differences_all: dict[tuple[str, str], tuple[Array, Array]]
    norm: Array
    rounding: Array
    verdict: str


def _ratio(weights: Array, z: Array, rest: Array, kind: Kind) -> Array:
    """R for each row of weights (b, n) and block: (b, block)."""
    if kind == "ratio_of_means":
        top, bottom = weights @ z.T, weights @ rest.T
    else:
        usable = rest > 0
        each = np.divide(z, rest, out=np.zeros_like(z), where=usable)
        top, bottom = weights @ each.T, weights @ usable.T.astype(np.float64)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def residual_updates(
    norms: UpdateNorms,
    k: int,
    *,
    kind: Kind = "ratio_of_means",
    languages: NDArray[np.str_] | Sequence[str] | None = None,
    groups: Groups = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ResidualUpdates:
    """R of every block with band, chance value, languages and a verdict.

    A block whose update is rounding for more than `ROUNDED` of its length is left out of all that is
    concluded: its simultaneous limits and p are NaN. Rounding has a direction of its own, that of the
    stream's large coordinates.

    Args:
        norms: from `update_norms`. k: one of its ks.
        kind: "ratio_of_means" (mean length inside over mean length outside) or "mean_of_ratios".
        languages: language of each prompt; adds one curve per language and their differences. The
            same resampled groups serve both languages, so a difference is paired.
        groups: resampling unit of each prompt (its pair_id); None resamples prompts.
    """
    if k not in norms.ks:
        raise AnalysisError("This k was not measured.", expected=f"one of {span(norms.ks)}", given=f"k = {k}")
    at = norms.ks.index(k)
    z, rest = norms.z[:, :, at], norms.rest[:, :, at]
    n = z.shape[1]
    weights = resample_weights(n, n_boot, seed, groups)
    name = f"percentile bootstrap over {'prompts' if groups is None else 'groups'}"
    estimate, draws = _ratio(np.ones((1, n)), z, rest, kind)[0], _ratio(weights, z, rest, kind)
    whole = band(estimate, draws, level, name)
    units = len(np.unique(np.arange(n) if groups is None else np.asarray(groups)))
    low_all, high_all = _simultaneous(estimate, draws, level, units)
    chance = chance_ratio(norms.d, k, kind)
    lost = norms.shares > ROUNDED
    low_all, high_all = _without(lost, low_all), _without(lost, high_all)
    p_random, labels = _p_random(norms, z, k, lost), tuple(map(update_label, norms.which))
    curves, apart, apart_all = _by_language(languages, weights, z, rest, kind, level, name, units, lost)
    return ResidualUpdates(
        blocks=norms.which,
        labels=labels,
        k=k,
        d=norms.d,
        kind=kind,
        ratio=whole,
        low_all=low_all,
        high_all=high_all,
        chance=chance,
        relative=estimate / chance,
        p_random=p_random[0],
        p_random_low=p_random[1],
        languages=curves,
        differences=apart,
        differences_all=apart_all,
        norm=norms.total.mean(axis=1),
        rounding=norms.shares,
        verdict=_verdict(labels, _without(lost, estimate), low_all, high_all, chance, p_random),
    )


def _without(lost: NDArray[np.bool_], values: Array) -> Array:
    return np.where(lost, np.nan, values)


def _by_language(
    languages: NDArray[np.str_] | Sequence[str] | None,
    weights: Array,
    z: Array,
    rest: Array,
    kind: Kind,
    level: float,
    name: str,
    units: int,
    lost: NDArray[np.bool_],
) -> tuple[dict[str, Band], dict[tuple[str, str], Band], dict[tuple[str, str], tuple[Array, Array]]]:
    if languages is None:
        return {}, {}, {}
    labels = np.asarray(languages)
    if labels.shape != (z.shape[1],):
        raise AnalysisError(
            "The languages do not match the prompts.",
            expected=f"{z.shape[1]} labels",
            given=f"shape {labels.shape}",
        )
    names = [str(v) for v in dict.fromkeys(labels.tolist())]
    point: dict[str, Array] = {}
    drawn: dict[str, Array] = {}
    for language in names:
        mine = (labels == language).astype(np.float64)
        point[language] = _ratio(mine[None], z, rest, kind)[0]
        drawn[language] = _ratio(weights * mine, z, rest, kind)
    curves = {v: band(point[v], drawn[v], level, name) for v in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    gaps = {(a, b): (point[a] - point[b], drawn[a] - drawn[b]) for a, b in pairs}
    apart = {pair: band(*gap, level, f"paired {name}") for pair, gap in gaps.items()}
    together = {pair: _max_t(*gap, level, units) for pair, gap in gaps.items()}
    return curves, apart, {pair: (_without(lost, a), _without(lost, b)) for pair, (a, b) in together.items()}


def _simultaneous(estimate: Array, draws: Array, level: float, units: int) -> tuple[Array, Array]:
    """Limits that hold for all blocks together: max-|t| of log R over blocks."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _max_t(np.log(estimate), np.log(draws), level, units)
    return np.exp(low), np.exp(high)


def _max_t(estimate: Array, draws: Array, level: float, units: int) -> tuple[Array, Array]:
    """estimate ± c·se, c from the `level` quantile over draws of the largest |draw − estimate|/se.

    A bootstrap of few units knows neither that its own spread is too small by √((n − 1)/n) nor that se is
    estimated: the spread is scaled, and c replaced by the quantile of Student's t with n − 1 degrees of
    freedom at which the normal law has c.
    """
    with np.errstate(invalid="ignore"):
        draws = np.where(np.isfinite(draws), draws, estimate)
        spread = draws.std(axis=0, ddof=1)
        t = np.abs(draws - estimate) / np.where(spread > 0, spread, np.inf)
        critical = float(np.quantile(np.where(np.isfinite(t), t, 0.0).max(axis=1), level))
        if units > 1:
            critical = -float(stdtrit(units - 1, ndtr(-critical))) * float(np.sqrt(units / (units - 1)))
        return estimate - critical * spread, estimate + critical * spread


def _p_random(norms: UpdateNorms, z: Array, k: int, lost: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Holm's p of each block's mean energy fraction in Z being as large, and as small, in a random subspace.

    Of blocks that aren't lost; the larger p of two nulls: uniformly random k-subspaces, and those that keep
    Z's share of every coordinate.
    """
    out, fractions = np.full(z.shape[0], np.nan), np.full(z.shape[0], np.nan)
    for u, (inside, total, shared) in enumerate(zip(z, norms.total, norms.concentration, strict=True)):
        keep = total > 0
        if keep.any() and np.isfinite(shared):
            fractions[u] = float(((inside[keep] / total[keep]) ** 2).mean())
            out[u] = energy_p_value(fractions[u], *random_subspace_moments(norms.d, k, 1.0, shared))
    more, less = out, 1.0 - out
    if norms.scales is not None:
        null = ScaleNull(*norms.scales[:, :, norms.ks.index(k)])
        more, less = np.maximum(more, null.p(fractions)), np.maximum(less, null.p_low(fractions))
    return holm(_without(lost, more)), holm(_without(lost, less))


def _names(labels: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    return ", ".join(label for label, yes in zip(labels, chosen, strict=True) if yes)


def _verdict(
    labels: Sequence[str],
    estimate: Array,
    low: Array,
    high: Array,
    chance: float,
    p_random: tuple[Array, Array],
) -> str:
    """The finding in words.

    Against 1: "Z-dominated" where the simultaneous lower limit over blocks is above 1, "never" when no
    upper limit is. Against chance: the simultaneous limit is
    beyond the chance value and the energy fraction is beyond what random k-subspaces hold, uniformly
    random ones and those that keep Z's share of every coordinate (Holm
    over blocks, 2.5 % on each side), because prompts that all move alike make a bootstrap over
    prompts certain of a ratio that any other subspace would give differently.
    """
    if not np.isfinite(estimate).any():
        return "Not shown to be Z-dominated anywhere: every update is lost in rounding, or nothing moves."
    top = int(np.nanargmax(estimate))
    if (low > 1).any():
        first = f"Z-dominated (R > 1) at {_names(labels, low > 1)}"
    elif (estimate > 1).any():
        first = (
            f"Not shown to be Z-dominated anywhere: R exceeds 1 at {_names(labels, estimate > 1)}, "
            "but not beyond sampling error"
        )
    elif (high > 1).any():
        first = (
            f"Not shown to be Z-dominated anywhere: R stays below 1 (largest {estimate[top]:.3g} at "
            f"{labels[top]}), but sampling error reaches 1 at {_names(labels, high > 1)}"
        )
    else:
        first = f"Never Z-dominated: R stays below 1 (largest {estimate[top]:.3g} at {labels[top]})"
    if np.isnan(p_random[0]).all():
        return f"{first}; chance is {chance:.3g}, not compared (no random-subspace null was computed)."
    above, below = (
        beyond & (np.nan_to_num(p, nan=1.0) < 0.025)
        for beyond, p in zip((low > chance, high < chance), p_random, strict=True)
    )
    found = [
        f"{word} chance ({chance:.3g}) at {_names(labels, where)}"
        for word, where in (("above", above), ("below", below))
        if where.any()
    ]
    return f"{first}; {'; '.join(found) or f'nowhere shown to be off chance ({chance:.3g})'}."


@dataclass(frozen=True)
class UpdateSplit:
    """Attention's and the MLP's part in each block's update.

    Attributes:
        attn, mlp: R of the two contributions by themselves.
        attn_share_z, attn_share_rest: attention's signed share of the update's energy inside and
            outside Z, Σ⟨P a, P Δ⟩/Σ‖P Δ‖²; the MLP's is one minus it.
        p_apart: of each block, how often a random subspace of Z's dimension tells the two apart as much.
    """

    attn: Band
    mlp: Band
    attn_share_z: Band
    attn_share_rest: Band
    p_apart: Array


def split_updates(
    attn: Iterable[Float[np.ndarray, "n d"]],
    mlp: Iterable[Float[np.ndarray, "n d"]],
    basis: Float[np.ndarray, "d k"],
    *,
    kind: Kind = "ratio_of_means",
    groups: Groups = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> UpdateSplit:
    """Split every block's update into what its attention and its MLP add.

    Args:
        attn, mlp: mean-pooled contributions (n, d) of block 0, 1, …; their sum is the update.
        basis: column-orthonormal (d, k).
    """
    check_basis(basis)
    rows, p_apart = [], []
    for a, m in zip(attn, mlp, strict=True):
        both = [v.astype(np.float64) for v in (a, m)]
        pa, pm = both[0] @ basis, both[1] @ basis
        za, zm, za_zm = _dots(pa, pa), _dots(pm, pm), _dots(pa, pm)
        ta, tm, ta_tm = _dots(*[both[0]] * 2), _dots(*[both[1]] * 2), _dots(*both)
        p_apart.append(parts_apart(both[0], both[1], basis))
        rows.append([za, zm, za_zm, ta - za, tm - zm, ta_tm - za_zm])
    if not rows:
        raise AnalysisError("There are no blocks to split.", expected="at least one block", given="none")
    za, zm, zc, ra, rm, rc = np.array(rows).transpose(1, 0, 2)
    n = za.shape[1]
    weights, ones = resample_weights(n, n_boot, seed, groups), np.ones((1, n))
    name = f"percentile bootstrap over {'prompts' if groups is None else 'groups'}"

    def curve(inside: Array, outside: Array) -> Band:
        z, rest = np.sqrt(inside), np.sqrt(np.maximum(outside, 0.0))
        return band(_ratio(ones, z, rest, kind)[0], _ratio(weights, z, rest, kind), level, name)

    def share(own: Array, cross: Array, other: Array) -> Band:
        top, bottom = own + cross, own + 2 * cross + other
        point = _ratio(ones, top, bottom, "ratio_of_means")[0]
        return band(point, _ratio(weights, top, bottom, "ratio_of_means"), level, name)

    shares = share(za, zc, zm), share(ra, rc, rm)
    return UpdateSplit(curve(za, ra), curve(zm, rm), *shares, np.array(p_apart))


def _dots(a: Array, b: Array) -> Array:
    return np.vecdot(a, b)
