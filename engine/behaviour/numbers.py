"""How a model behaves, as numbers: refusal, choices, agreement; rates, means and their differences.

Input are natural log-probabilities of continuations (`engine.passes.continuations`) or per-prompt values. NaN
means that a measure does not apply to a prompt; such prompts are left out and counted out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import special

from engine.errors import AnalysisError
from engine.stats.means import bootstrap_mean
from engine.stats.resampling import unit_index
from engine.stats.uncertainty import Groups, Interval, mcnemar_exact, wilson

Array = NDArray[np.float64]


def mean_log_probs(log_probs: Sequence[Float[np.ndarray, " tokens"]]) -> Float[np.ndarray, " k"]:
    """Length-normalised log-probability of each continuation: the mean over its tokens, nats per token."""
    return np.array([float(np.mean(tokens)) for tokens in log_probs])


def total_log_probs(log_probs: Sequence[Float[np.ndarray, " tokens"]]) -> Float[np.ndarray, " k"]:
    """Log-probability of each continuation as a whole, nats."""
    return np.array([float(np.sum(tokens)) for tokens in log_probs])


def restricted(
    log_probs: Float[np.ndarray, " tokens"],
    log_mass: Float[np.ndarray, " tokens"],
    shared: Bool[np.ndarray, " tokens"],
) -> Float[np.ndarray, " tokens"]:
    """A continuation under the distribution restricted to shared tokens and renormalised.

    log p − log of the shared tokens' probability; NaN for a continuation with a token that is not shared,
    which the restricted distribution cannot write.

    Args:
        log_mass: log of the probability of all shared tokens at each place. shared: whether each token is.
    """
    return log_probs - log_mass if bool(np.all(shared)) else np.full(len(log_probs), np.nan)


def soft_refusal(refusal: Float[np.ndarray, " r"], neutral: Float[np.ndarray, " m"]) -> float:
    """logmeanexp over refusal openings − the same over neutral ones, in nats per token.

    Input are length-normalised log-probabilities. Positive: the model would rather open with a refusal.
    Continuations that are NaN are left out; NaN where a side has none left.
    """
    return _log_mean_exp(refusal) - _log_mean_exp(neutral)


def choice_margin(scores: Float[np.ndarray, " k"], correct: int) -> tuple[float, float]:
    """Multiple choice: Δ = log p(correct) − mean log p(wrong), nats per token, and 1 where correct is best.

    A tie with a wrong choice is not right. Both NaN where the correct choice, or every wrong one, is NaN.

    Args:
        scores: length-normalised log-probability of each choice. correct: index of the correct one.
    """
    values = np.asarray(scores, dtype=np.float64)
    wrong = np.delete(values, correct)
    wrong = wrong[~np.isnan(wrong)]
    if np.isnan(values[correct]) or not wrong.size:
        return float("nan"), float("nan")
    return float(values[correct] - wrong.mean()), float(values[correct] > wrong.max())


def agreement(yes: Float[np.ndarray, " y"], no: Float[np.ndarray, " n"]) -> float:
    """log p(Yes) − log p(No), each summed over its surface forms; nats.

    Args:
        yes, no: log-probabilities of forms as wholes, none of which begins with another. NaN is left out;
            the result is NaN where a side has none left.
    """
    return _log_sum_exp(yes) - _log_sum_exp(no)


def _log_sum_exp(values: Array) -> float:
    kept = values[~np.isnan(values)]
    return float(special.logsumexp(kept)) if kept.size else float("nan")


def _log_mean_exp(values: Array) -> float:
    kept = values[~np.isnan(values)]
    return _log_sum_exp(kept) - float(np.log(kept.size)) if kept.size else float("nan")


def unit_means(values: Float[np.ndarray, " n"], groups: Groups = None) -> Float[np.ndarray, " u"]:
    """Mean of each resampling unit (pair), in order of first appearance."""
    unit = unit_index(len(values), groups)
    return np.bincount(unit, weights=values) / np.bincount(unit)


def summarise(
    values: Float[np.ndarray, " n"],
    groups: Groups = None,
    *,
    binary: bool = False,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean over the prompts that have a value, with its interval over prompts or pairs.

    A rate (`binary`) has the Wilson score interval with the pairs as its trials: too wide rather than too
    narrow for pairs whose prompts differ. Any other mean has a studentised bootstrap interval. One unit alone
    has no interval: its ends are NaN.

    Raises:
        AnalysisError: no prompt has a value.
    """
    known, labels = _known(values, groups=groups)
    units = unit_means(known, labels)
    if units.size < 2:
        return Interval(float(known.mean()), float("nan"), float("nan"), level, "none: a single unit")
    if not binary:
        return bootstrap_mean(known, groups=labels, n_boot=n_boot, level=level, seed=seed)
    rate = float(known.mean())
    found = wilson(rate * units.size, units.size, level)
    return Interval(rate, found.low, found.high, level, _over("Wilson score", labels))


@dataclass(frozen=True)
class Difference:
    """Second minus first, on the same prompts.

    Attributes:
        interval: of the mean difference.
        p: exact two-sided p-value, for binary outcomes only.
        first_only, second_only: units where the first, or the second, did it more often.
        n: prompts with a value on both sides.
    """

    interval: Interval
    p: float | None
    first_only: int
    second_only: int
    n: int


def difference(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    groups: Groups = None,
    *,
    binary: bool = False,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean of second − first over the prompts that both have a value for.

    Binary outcomes: Newcombe's score interval for paired rates, and the exact McNemar test, both over units
    (for pairs of prompts it is the exact sign test on which side of the pair's difference is larger).
    Others, and rates of units of more than two prompts, which are outcomes no longer: studentised bootstrap
    of the paired differences (`engine.stats.means`), and no p.
    """
    a, b, labels = _both(first, second, groups)
    one, two = unit_means(a, labels), unit_means(b, labels)
    binary = binary and int(np.bincount(unit_index(a.size, labels)).max()) <= 2
    first_only, second_only = int((one > two).sum()), int((two > one).sum())
    delta = float((b - a).mean())
    if one.size < 2:
        interval = Interval(delta, float("nan"), float("nan"), level, "none: a single unit")
    elif binary:
        found = newcombe_paired(one, two, level)
        shift = delta - found.estimate  # 0 where all pairs are complete
        interval = Interval(delta, found.low + shift, found.high + shift, level, _over(found.method, labels))
    else:
        interval = bootstrap_mean(b - a, groups=labels, n_boot=n_boot, level=level, seed=seed)
    p = mcnemar_exact(first_only, second_only) if binary else None
    return Difference(interval, p, first_only, second_only, int(a.size))


def newcombe_paired(
    first: Float[np.ndarray, " u"], second: Float[np.ndarray, " u"], level: float = 0.95
) -> Interval:
    """Interval of the difference second − first of two paired rates (Newcombe 1998, method 10).

    The Wilson limits of both rates, joined by square and add with their correlation φ, corrected for
    continuity; unlike a bootstrap it keeps a width where every prompt agrees. With l, u the limits, the lower
    end lies √((p₂ − l₂)² − 2φ(p₂ − l₂)(u₁ − p₁) + (u₁ − p₁)²) below the difference; the upper end is the
    mirror image.

    Args:
        first, second: outcome per unit in [0, 1].
    """
    a, b = wilson(float(first.sum()), first.size, level), wilson(float(second.sum()), second.size, level)
    phi = _phi(first, second)
    delta = b.estimate - a.estimate

    def reach(one: float, two: float) -> float:
        return float(np.sqrt(max(0.0, one * one - 2 * phi * one * two + two * two)))

    low = delta - reach(b.estimate - b.low, a.high - a.estimate)
    high = delta + reach(b.high - b.estimate, a.estimate - a.low)
    return Interval(delta, max(-1.0, low), min(1.0, high), level, "Newcombe score")


def _phi(first: Array, second: Array) -> float:
    """(ad − bc)/√(product of the margins) of the 2 × 2 table; of a positive numerator n/2 is taken off."""
    n, spread = first.size, float(first.std() * second.std())
    if spread == 0:
        return 0.0
    together = float(np.mean((first - first.mean()) * (second - second.mean())))
    return min(together, max(0.0, together - 0.5 / n)) / spread


@dataclass(frozen=True)
class Cell:
    """One part of a breakdown: what it is, its mean and interval, and how many prompts have a value."""

    key: str
    interval: Interval
    n: int


def breakdown(
    values: Float[np.ndarray, " n"],
    keys: Sequence[str | None],
    groups: Groups = None,
    *,
    binary: bool = False,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Cell]:
    """Mean and interval for each key (category, language …), in order of appearance.

    Prompts without a key, and keys without a value, are left out.
    """
    x, labels = np.asarray(values, dtype=np.float64), None if groups is None else np.asarray(groups)
    cells = []
    for key in dict.fromkeys(k for k in keys if k is not None):
        at = np.array([k == key for k in keys]) & ~np.isnan(x)
        if at.any():
            own = None if labels is None else labels[at]
            found = summarise(x[at], own, binary=binary, n_boot=n_boot, level=level, seed=seed)
            cells.append(Cell(key, found, int(at.sum())))
    return cells


@dataclass(frozen=True)
class Asymmetry:
    """One model's success in two languages on the same pairs.

    Attributes:
        rates: share of successes per language, over complete pairs.
        first_only, second_only: pairs right in the first (second) language alone.
        p: exact McNemar p-value. n: complete pairs.
    """

    languages: tuple[str, str]
    rates: tuple[float, float]
    first_only: int
    second_only: int
    p: float
    n: int


def language_asymmetry(
    right: Float[np.ndarray, " n"], languages: Sequence[str | None], pairs: Sequence[str | None]
) -> list[Asymmetry]:
    """Whether a model succeeds more often in one language, by the exact McNemar test on pairs.

    One entry for each two languages that share pairs. Prompts without a pair or a value take no part.
    """
    table: dict[str, dict[str, float]] = {}
    for value, language, pair in zip(right, languages, pairs, strict=True):
        if language is not None and pair is not None and not np.isnan(value):
            table.setdefault(pair, {})[language] = float(value)
    spoken = sorted({language for own in table.values() for language in own})
    found = []
    for i, one in enumerate(spoken):
        for two in spoken[i + 1 :]:
            both = np.array([[own[one], own[two]] for own in table.values() if one in own and two in own])
            if len(both):
                found.append(_asymmetry((one, two), both))
    return found


def _asymmetry(names: tuple[str, str], both: Array) -> Asymmetry:
    first_only, second_only = int((both[:, 0] > both[:, 1]).sum()), int((both[:, 1] > both[:, 0]).sum())
    rates = (float(both[:, 0].mean()), float(both[:, 1].mean()))
    p = mcnemar_exact(first_only, second_only)
    return Asymmetry(names, rates, first_only, second_only, p, len(both))


def _over(method: str, labels: NDArray[np.generic] | None) -> str:
    return f"{method} over {'prompts' if labels is None else 'groups'}"


def _known(values: Float[np.ndarray, " n"], groups: Groups) -> tuple[Array, NDArray[np.generic] | None]:
    x = np.asarray(values, dtype=np.float64)
    at = ~np.isnan(x)
    if not at.any():
        raise AnalysisError(
            "No prompt has a value.", expected="at least one", given=f"{x.size} prompts without"
        )
    return x[at], None if groups is None else np.asarray(groups)[at]


def _both(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], groups: Groups
) -> tuple[Array, Array, NDArray[np.generic] | None]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise AnalysisError(
            "A paired difference needs the same prompts on both sides.",
            expected=f"{a.shape} values",
            given=b.shape,
        )
    at = ~(np.isnan(a) | np.isnan(b))
    if not at.any():
        raise AnalysisError(
            "No prompt has a value on both sides.", expected="at least one", given=f"{a.size} prompts without"
        )
    return a[at], b[at], None if groups is None else np.asarray(groups)[at]
