"""What replacing a subspace and its complement does to answers and to their language, and a verdict.

Every problem is answered unpatched and under patches of Z, of its complement Z⊥ and of everything. Two things
may change: the answer and the language. Controls for each part: random subspaces of its dimension, and the
problem's own mean (what broadcasting one vector does). The unit is the problem; draws of random subspaces are
averaged within it, never pooled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import special

from engine.errors import AnalysisError
from engine.stats.uncertainty import Interval, holm, mcnemar_exact, wilson

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Part = Literal["Z", "Z⊥"]
Word = Literal[
    "double dissociation",
    "partial",
    "one part does both",
    "not separable from broadcasting",
    "not specific",
    "null",
    "too few problems",
]

ALPHA = 0.05
LEAST = 7
"""Problems below which nothing can be said: with all of 6 problems discordant the exact McNemar p is 2·½⁶ =
0.031, which Holm over two outcomes doubles to 0.0625; 7 give 0.031."""


@dataclass(frozen=True)
class Changes:
    """One thing that may change, over the same n problems.

    Attributes:
        z, rest: (n,) whether it changed when Z, Z⊥ was patched.
        own_z, own_rest: (n,) the same with the problem's own mean instead of the source.
        random_z, random_rest: (draws, n) with random subspaces of Z's dimension, and their complements.
    """

    z: Flags
    rest: Flags
    own_z: Flags
    own_rest: Flags
    random_z: Flags
    random_rest: Flags

    def __post_init__(self) -> None:
        flat = {np.shape(v) for v in (self.z, self.rest, self.own_z, self.own_rest)}
        drawn = {np.shape(self.random_z), np.shape(self.random_rest)}
        n = len(self.z)
        if flat != {(n,)} or {s[1:] for s in drawn} != {(n,)} or min(s[0] for s in drawn) < 2 or not n:
            raise AnalysisError(
                "These outcomes are not of the same problems.",
                expected="one flag per problem and condition, and at least 2 random draws",
                given=f"shapes {sorted(flat)} and {sorted(drawn)}",
            )


@dataclass(frozen=True)
class Against:
    """A part against random subspaces of its dimension.

    Attributes:
        rate: of the draws, averaged. difference: the part's rate minus that.
        p: one-sided sign-flip p of the difference, exact, over problems.
        limit: what a further random draw stays below with 95 % probability (prediction limit from the draws'
            own spread, Student's t).
        exceeds: p < 0.05 and the part's rate is above the limit.
    """

    rate: float
    difference: float
    p: float
    limit: float
    exceeds: bool


@dataclass(frozen=True)
class Test:
    """Z against Z⊥ in one outcome, and the stronger part against its controls.

    Attributes:
        n: problems. only_z, only_rest: problems in which only this part's patch changed it.
        p: exact McNemar. p_holm: Holm over the outcomes tested together.
        stronger: the part that changed it more often; None when equal.
        random, own: the stronger part (Z when equal) against random subspaces, and McNemar's p against the
            own mean.
        beyond_own: the own mean changes it less often, p < 0.05 after Holm over the outcomes told apart.
        told: p_holm < 0.05. stands: told, and beyond both controls.
    """

    n: int
    only_z: int
    only_rest: int
    p: float
    p_holm: float
    stronger: Part | None
    random: Against
    own: float
    beyond_own: bool
    told: bool
    stands: bool


@dataclass(frozen=True)
class Verdict:
    """What can be said, and the tests it rests on.

    Attributes:
        word: see `verdict`. outcome: of "partial", which outcome.
        tests: by outcome, "answer" and "language".
    """

    word: Word
    outcome: str | None
    tests: dict[str, Test]


def rate(values: Bool[np.ndarray, " n"], level: float = 0.95) -> Interval | None:
    """Share of independent problems with its Wilson interval; None without problems."""
    return wilson(float(np.sum(values)), len(values), level) if len(values) else None


def paired_p(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> float:
    """Exact McNemar p of two conditions on the same problems."""
    return mcnemar_exact(int((first & ~second).sum()), int((second & ~first).sum()))


def sign_flip_p(values: Bool[np.ndarray, " n"], draws: Bool[np.ndarray, "b n"]) -> float:
    """One-sided p that a condition succeeds more often than the average of several draws, over problems.

    The statistic is Σ_i (values_i − mean of draws_i); under the null each problem's difference is as likely
    negative. All 2ⁿ signs are counted exactly: differences are multiples of 1/draws, so the distribution of
    their sum is a convolution.
    """
    steps = len(draws) * values.astype(np.int64) - draws.sum(axis=0).astype(np.int64)
    sizes = np.abs(steps)
    half = int(sizes.sum())
    if not half:
        return 1.0
    chance = np.zeros(2 * half + 1)
    chance[half] = 1.0
    for size in sizes[sizes > 0]:
        moved = np.zeros_like(chance)
        moved[size:] += chance[:-size]
        moved[:-size] += chance[size:]
        chance = moved / 2
    return float(min(1.0, chance[half + int(steps.sum()) :].sum()))


def prediction_limit(rates: Float[np.ndarray, " b"], tail: float = ALPHA) -> float:
    """What one further draw exceeds with probability `tail`: mean + t₁₋ₜₐᵢₗ · sd · √(1 + 1/b)."""
    spread = float(rates.std(ddof=1)) * float(special.stdtrit(len(rates) - 1, 1 - tail))
    return float(rates.mean()) + spread * float(np.sqrt(1 + 1 / len(rates)))


def against_random(values: Bool[np.ndarray, " n"], draws: Bool[np.ndarray, "b n"]) -> Against:
    """A condition against the same with several random subspaces.

    Two things must hold for it to exceed them: over problems the sign-flip test against the averaged draws,
    and over subspaces, as Z is one beside the drawn ones, a rate above their `prediction_limit`.
    """
    rates = draws.mean(axis=1)
    limit, own, p = prediction_limit(rates), float(values.mean()), sign_flip_p(values, draws)
    return Against(float(rates.mean()), own - float(rates.mean()), p, limit, p < ALPHA and own > limit)


def verdict(outcomes: Mapping[str, Changes]) -> Verdict:
    """What patching Z and Z⊥ shows, by these inequalities, in this order.

    - "too few problems": fewer than `LEAST`.
    - "null": Z and Z⊥ are not told apart in any outcome (exact McNemar, Holm over outcomes, p < 0.05).
    - An outcome *stands* when it is told apart and its stronger part changes it more often than random
      subspaces of its dimension (`against_random`) and than its own mean (McNemar), Holm over the outcomes
      told apart.
    - "double dissociation": both told apart with opposite parts stronger, Z's outcome stands, and in the
      other one Z⊥ differs from its own mean.
    - "one part does both": both stand with the same part stronger.
    - "partial": one stands.
    - "not separable from broadcasting": every outcome told apart fails against the own mean.
    - "not specific": the rest: random subspaces of the same dimension do as much.
    """
    tests = dict(zip(outcomes, _tests(list(outcomes.values())), strict=True))
    standing = [name for name, test in tests.items() if test.stands]
    word = _word(list(tests.values()))
    return Verdict(word, standing[0] if word == "partial" else None, tests)


def _word(tests: list[Test]) -> Word:
    told = [test for test in tests if test.told]
    standing = [test for test in tests if test.stands]
    parts = {test.stronger for test in told}
    z_stands = any(test.stronger == "Z" for test in standing)
    if min(test.n for test in tests) < LEAST:
        return "too few problems"
    if not told:
        return "null"
    if len(parts) > 1 and z_stands and all(test.beyond_own for test in told):
        return "double dissociation"
    if standing:
        return "one part does both" if len(standing) > 1 and len(parts) == 1 else "partial"
    return "not specific" if any(test.beyond_own for test in told) else "not separable from broadcasting"


def _tests(outcomes: list[Changes]) -> list[Test]:
    raw = np.array([paired_p(changes.z, changes.rest) for changes in outcomes])
    adjusted = holm(raw)
    told = adjusted < ALPHA
    found = []
    controls = [_controls(changes) for changes in outcomes]
    own = holm(np.where(told, [p for _, p, _ in controls], np.nan))
    random = holm(np.where(told, [against.p for against, _, _ in controls], np.nan))
    for i, changes in enumerate(outcomes):
        only_z, only_rest = (
            int((a & ~b).sum()) for a, b in ((changes.z, changes.rest), (changes.rest, changes.z))
        )
        stronger: Part | None = "Z" if only_z > only_rest else "Z⊥" if only_rest > only_z else None
        against, p_own, more = controls[i]
        beyond = bool(told[i] and own[i] < ALPHA and more)
        stands = bool(beyond and random[i] < ALPHA and against.exceeds)
        found.append(
            Test(
                len(changes.z),
                only_z,
                only_rest,
                float(raw[i]),
                float(adjusted[i]),
                stronger,
                against,
                p_own,
                beyond,
                bool(told[i]),
                stands,
            )
        )
    return found


def _controls(changes: Changes) -> tuple[Against, float, bool]:
    """The stronger part against random subspaces, and against the own mean: p, whether it does more."""
    z_first = changes.z.sum() >= changes.rest.sum()
    values, own, draws = (
        (changes.z, changes.own_z, changes.random_z)
        if z_first
        else (changes.rest, changes.own_rest, changes.random_rest)
    )
    return against_random(values, draws), paired_p(values, own), bool(values.sum() > own.sum())


def resemblance(
    full: Float[np.ndarray, "n m"], z: Float[np.ndarray, "n m"], rest: Float[np.ndarray, "n m"]
) -> tuple[Flags, Flags]:
    """Whether patching everything did the same as patching Z, and the same as patching Z⊥, per problem.

    Args:
        full, z, rest: codes of what became of each problem, one column per outcome.
    """
    return (full == z).all(axis=1), (full == rest).all(axis=1)
