"""Residual updates R: how much of what a block adds to the stream lies in a subspace Z.

Δ_u = state(u + 1) − state(u) of the mean-pooled residual stream is what block u adds; on the axis it is
"u−1→u" (block 0's own update is "−1→0"). R(u) = mean‖P_Z Δ‖/mean‖P_Z⊥ Δ‖ over prompts. An update that
has nothing to do with Z does not give R = 1 but the much smaller chance value of `chance_ratio`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import gammaln

from engine.analysis.subspace import check_basis
from engine.analysis.uncertainty import (
    Band,
    Groups,
    band,
    energy_p_value,
    holm,
    random_subspace_moments,
    resample_weights,
)
from engine.errors import AnalysisError

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


def update_label(block: int) -> str:
    """Axis label of a block's update: what it adds on the way from the block before it."""
    return f"{'−1' if block == 0 else block - 1}→{block}"


def updates(states: Iterable[Float[np.ndarray, "n d"]]) -> Iterator[Float[np.ndarray, "n d"]]:
    """What each block adds: differences of successive residual states (L + 1 states, L updates)."""
    before: NDArray[np.floating] | None = None
    for state in states:
        if before is not None:
            yield state - before
        before = state


@dataclass(frozen=True)
class UpdateNorms:
    """Lengths of updates inside and outside Z, for several k at once.

    Attributes:
        z, rest: (block, prompt, k) ‖P_Z Δ‖ and ‖P_Z⊥ Δ‖. total: (block, prompt) ‖Δ‖.
        concentration: (block,) tr S² of the row-normalised updates: 1 when all prompts move the
            same way, towards 1/d when they have nothing in common; NaN when not asked for.
        ks: the k values. d: model width.
    """

    z: Array
    rest: Array
    total: Array
    concentration: Array
    ks: tuple[int, ...]
    d: int


Bases = Float[np.ndarray, "d k"] | Mapping[int, NDArray[np.floating]]


def update_norms(
    deltas: Iterable[Float[np.ndarray, "n d"]],
    bases: Bases,
    ks: Sequence[int] | None = None,
    *,
    concentration: bool = True,
) -> UpdateNorms:
    """Measure every block's update against Z for all k at once.

    Args:
        deltas: updates (n, d), one block after another (see `updates`).
        bases: a basis (d, k_max) whose first k columns are the basis for k (nested: "kernels",
            random, PCA), or a mapping k → basis (d, k) where they are built per k ("blocks").
        ks: which k; default 1..k_max, or the mapping's keys.
        concentration: also compute tr S², needed for the null against random subspaces.

    Raises:
        AnalysisError: a basis that is not orthonormal or not of the updates' width, k out of range.
    """
    nested = isinstance(bases, np.ndarray)
    available = range(1, bases.shape[1] + 1) if isinstance(bases, np.ndarray) else sorted(bases)
    wanted = tuple(available if ks is None else ks)
    if not wanted or not set(wanted) <= set(available):
        raise AnalysisError(
            "Some k have no basis.", expected=f"k among {_span(available)}", given=f"{wanted}"
        )
    # one matrix product for all k: nested bases share their columns, others are put side by side
    parts = [bases[:, : max(wanted)]] if isinstance(bases, np.ndarray) else [bases[k] for k in wanted]
    for part in parts:
        check_basis(np.asarray(part))
    joined = np.concatenate(parts, axis=1)
    edges = np.cumsum([0, *(p.shape[1] for p in parts)])
    z2, total2, shared = [], [], []
    for delta in deltas:
        if delta.shape[-1] != joined.shape[0]:
            raise AnalysisError(
                "The basis belongs to another model width.",
                expected=f"d = {delta.shape[-1]}",
                given=f"d = {joined.shape[0]}",
            )
        squares = (delta @ joined.astype(delta.dtype, copy=False)).astype(np.float64) ** 2
        if nested:
            z2.append(np.cumsum(squares, axis=1)[:, np.array(wanted) - 1])
        else:
            z2.append(np.add.reduceat(squares, edges[:-1], axis=1))
        total2.append(
            np.einsum("nd,nd->n", delta, delta, dtype=np.float64, optimize=False)
            if delta.dtype == np.float64
            else np.vecdot(delta, delta).astype(np.float64)
        )
        shared.append(_concentration(delta, total2[-1]) if concentration else np.nan)
    if not z2:
        raise AnalysisError("There are no updates.", expected="at least two residual states", given="none")
    inside, whole = np.array(z2), np.array(total2)
    rest = np.sqrt(np.maximum(whole[:, :, None] - inside, 0.0))
    return UpdateNorms(np.sqrt(inside), rest, np.sqrt(whole), np.array(shared), wanted, joined.shape[0])


def _span(values: Iterable[int]) -> str:
    listed = list(values)
    return f"{listed[0]}..{listed[-1]}" if len(listed) > 8 else str(listed)


def _concentration(delta: NDArray[np.floating], squared: Array) -> float:
    """tr S² for S = mean of x xᵀ/‖x‖², from the smaller of the two Gram matrices."""
    keep = squared > 0
    if not keep.any():
        return float("nan")
    x = delta[keep] / np.sqrt(squared[keep, None]).astype(delta.dtype)
    inner = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return float(np.vecdot(inner, inner).sum(dtype=np.float64)) / keep.sum() ** 2


@dataclass(frozen=True)
class ResidualUpdates:
    """R of every block at one k.

    Attributes:
        labels: axis labels. k, d, kind: what was computed.
        ratio: R with its bootstrap band. low_all, high_all: simultaneous limits over blocks.
        chance: R of an unrelated update. relative: R/chance.
        p_random: Holm-adjusted p of each block's energy fraction in Z against random k-subspaces.
        languages: R of each language. differences: R of one language minus R of another.
        norm: mean ‖Δ‖ of each block.
        verdict: the finding in words, against chance and against 1.
    """

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
    languages: dict[str, Band]
    differences: dict[tuple[str, str], Band]
    norm: Array
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

    Args:
        norms: from `update_norms`. k: one of its ks.
        kind: "ratio_of_means" (mean length inside over mean length outside) or "mean_of_ratios".
        languages: language of each prompt; adds one curve per language and their differences. The
            same resampled groups serve both languages, so a difference is paired.
        groups: resampling unit of each prompt (its pair_id); None resamples prompts.
    """
    if k not in norms.ks:
        raise AnalysisError(
            "This k was not measured.", expected=f"one of {_span(norms.ks)}", given=f"k = {k}"
        )
    at = norms.ks.index(k)
    z, rest = norms.z[:, :, at], norms.rest[:, :, at]
    n = z.shape[1]
    weights = resample_weights(n, n_boot, seed, groups)
    unit = "prompts" if groups is None else "groups"
    name = f"percentile bootstrap over {unit}"
    ones, draws = np.ones((1, n)), _ratio(weights, z, rest, kind)
    estimate = _ratio(ones, z, rest, kind)[0]
    whole = band(estimate, draws, level, name)
    low_all, high_all = _simultaneous(estimate, draws, level)
    chance = chance_ratio(norms.d, k, kind)
    p_random = holm(_p_random(norms, z, k))
    curves, apart = _by_language(languages, weights, z, rest, kind, level, name)
    labels = tuple(update_label(u) for u in range(z.shape[0]))
    verdict = _verdict(labels, estimate, low_all, high_all, chance, p_random)
    return ResidualUpdates(
        labels,
        k,
        norms.d,
        kind,
        whole,
        low_all,
        high_all,
        chance,
        estimate / chance,
        p_random,
        curves,
        apart,
        norms.total.mean(axis=1),
        verdict,
    )


def _by_language(
    languages: NDArray[np.str_] | Sequence[str] | None,
    weights: Array,
    z: Array,
    rest: Array,
    kind: Kind,
    level: float,
    name: str,
) -> tuple[dict[str, Band], dict[tuple[str, str], Band]]:
    if languages is None:
        return {}, {}
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
    apart = {
        (a, b): band(point[a] - point[b], drawn[a] - drawn[b], level, f"paired {name}")
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    return curves, apart


def _simultaneous(estimate: Array, draws: Array, level: float) -> tuple[Array, Array]:
    """Limits that hold for all blocks together: max-|t| of log R over blocks."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs, centre = np.log(draws), np.log(estimate)
        logs = np.where(np.isfinite(logs), logs, centre)
        spread = logs.std(axis=0, ddof=1)
        t = np.abs(logs - centre) / np.where(spread > 0, spread, np.inf)
    critical = float(np.quantile(np.where(np.isfinite(t), t, 0.0).max(axis=1), level))
    return estimate * np.exp(-critical * spread), estimate * np.exp(critical * spread)


def _p_random(norms: UpdateNorms, z: Array, k: int) -> Array:
    """p-value of each block's mean energy fraction in Z under a uniformly random k-subspace."""
    out = np.full(z.shape[0], np.nan)
    for u, (inside, total, shared) in enumerate(zip(z, norms.total, norms.concentration, strict=True)):
        keep = total > 0
        if keep.any() and np.isfinite(shared):
            fraction = float(((inside[keep] / total[keep]) ** 2).mean())
            out[u] = energy_p_value(fraction, *random_subspace_moments(norms.d, k, 1.0, shared))
    return out


def _names(labels: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    return ", ".join(label for label, yes in zip(labels, chosen, strict=True) if yes)


def _verdict(
    labels: Sequence[str], estimate: Array, low: Array, high: Array, chance: float, p_random: Array
) -> str:
    """The finding in words. Against 1: simultaneous limits. Against chance: these and p_random."""
    top = int(np.nanargmax(estimate)) if np.isfinite(estimate).any() else 0
    if (low > 1).any():
        first = f"Z-dominated (R > 1) at {_names(labels, low > 1)}"
    elif (estimate > 1).any():
        first = (
            f"Not shown to be Z-dominated anywhere: R exceeds 1 at {_names(labels, estimate > 1)}, "
            "but not beyond sampling error"
        )
    else:
        first = f"Never Z-dominated: R stays below 1 (largest {estimate[top]:.3g} at {labels[top]})"
    above = (low > chance) & (np.nan_to_num(p_random, nan=1.0) < 0.05)
    if np.isnan(p_random).all():
        second = f"chance is {chance:.3g}, not compared (no random-subspace null was computed)"
    elif above.any():
        second = f"above chance ({chance:.3g}) at {_names(labels, above)}"
    else:
        second = f"nowhere above chance ({chance:.3g})"
    below = high < chance
    third = f"; below chance at {_names(labels, below)}" if below.any() else ""
    return f"{first}; {second}{third}."


@dataclass(frozen=True)
class UpdateSplit:
    """Attention's and the MLP's part in each block's update.

    Attributes:
        attn, mlp: R of the two contributions by themselves.
        attn_share_z, attn_share_rest: attention's signed share of the update's energy inside and
            outside Z, Σ⟨P a, P Δ⟩/Σ‖P Δ‖²; the MLP's is one minus it.
    """

    attn: Band
    mlp: Band
    attn_share_z: Band
    attn_share_rest: Band


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
    rows = []
    for a, m in zip(attn, mlp, strict=True):
        both = [v.astype(np.float64) for v in (a, m)]
        pa, pm = both[0] @ basis, both[1] @ basis
        za, zm, za_zm = _dots(pa, pa), _dots(pm, pm), _dots(pa, pm)
        ta, tm, ta_tm = _dots(*[both[0]] * 2), _dots(*[both[1]] * 2), _dots(*both)
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

    return UpdateSplit(curve(za, ra), curve(zm, rm), share(za, zc, zm), share(ra, rc, rm))


def _dots(a: Array, b: Array) -> Array:
    return np.vecdot(a, b)
