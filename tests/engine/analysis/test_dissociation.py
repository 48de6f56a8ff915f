"""Tests and verdicts on outcome tables: brute force, written inequalities, and simulated studies."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.calibration.entry import Make
from benchmarks.calibration.patched import (
    CLAIMS,
    CONTENT,
    NOTHING,
    SCAFFOLD,
    SMALL,
    WEAK,
    answers,
    same,
)
from benchmarks.calibration.patched import word as word_of
from engine.errors import AnalysisError
from engine.stats.uncertainty import holm, mcnemar_exact
from engine.z_patching.numbers import (
    LEAST,
    Changes,
    against_random,
    prediction_limit,
    rate,
    resemblance,
    sign_flip_p,
    verdict,
)

N, DRAWS, REPEATS = 20, 4, 300
PARTS = ("z", "rest", "own_z", "own_rest")


def flags(count: int, n: int = N) -> np.ndarray:
    return np.arange(n) < count


def changes(n: int = N, draws: tuple[int, int] = (0, 0), **counts: int) -> Changes:
    """Outcomes in which the first `count` problems changed."""
    given = {part: flags(counts.get(part, 0), n) for part in PARTS}
    random = {
        f"random_{k}": np.tile(flags(c, n), (DRAWS, 1)) for k, c in zip(("z", "rest"), draws, strict=True)
    }
    return Changes(**given, **random)


def word(answer: Changes, language: Changes) -> str:
    found = verdict({"answer": answer, "language": language})
    return found.word if found.outcome is None else f"{found.word}: {found.outcome}"


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_are_those_of_a_loop_over_all_signs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, draws = rng.random(9) < 0.6, rng.random((3, 9)) < 0.3
    d = values - draws.mean(axis=0)
    sums = np.array([np.dot(signs, np.abs(d)) for signs in itertools.product((-1, 1), repeat=9)])
    assert sign_flip_p(values, draws) == pytest.approx((sums >= d.sum() - 1e-9).mean(), abs=1e-12)


def test_sign_flips_are_scipys() -> None:
    rng = np.random.default_rng(1)
    values, draws = rng.random(10) < 0.7, rng.random((4, 10)) < 0.3
    d = values - draws.mean(axis=0)
    theirs = stats.permutation_test(
        (d,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip_p(values, draws) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_nothing_differs_has_p_one() -> None:
    assert sign_flip_p(flags(5), np.tile(flags(5), (3, 1))) == 1.0


def test_six_discordant_problems_are_not_enough_for_two_outcomes() -> None:
    """2·½⁶ = 0.031 is below 0.05 for one test, and above it after Holm over two."""
    assert mcnemar_exact(6, 0) == pytest.approx(0.03125)
    assert holm(np.array([mcnemar_exact(6, 0), mcnemar_exact(6, 0)])).min() > 0.05
    assert holm(np.array([mcnemar_exact(LEAST, 0), 1.0])).min() < 0.05
    assert word(changes(6, z=6), changes(6, rest=6)) == "too few problems"
    assert word(changes(LEAST, z=7), changes(LEAST, rest=7)) == "double dissociation"


def test_each_verdict_follows_from_its_inequalities() -> None:
    lively, still = changes(z=18, rest=1), changes()
    assert word(still, still) == "null"
    assert word(lively, changes(rest=17)) == "double dissociation"
    assert word(changes(rest=17), lively) == "double dissociation"
    assert word(lively, still) == "partial: answer"
    assert word(still, lively) == "partial: language"
    assert word(lively, lively) == "one part does both"
    assert word(changes(z=18, own_z=18), still) == "not separable from broadcasting"
    assert word(changes(z=18, draws=(17, 17)), still) == "not specific"


def test_a_double_dissociation_needs_opposite_parts() -> None:
    """A complement that breaks everything tells Z from Z⊥ twice, and dissociates nothing."""
    broken = changes(rest=19, draws=(0, 19))
    assert word(broken, broken) == "not specific"


def test_a_double_dissociation_needs_z_beyond_random_subspaces() -> None:
    assert word(changes(z=18, draws=(16, 0)), changes(rest=17)) != "double dissociation"
    spread = changes(z=15)
    rates = np.array([0, 4, 12, 16])  # one draw of four does what Z does
    drawn = np.stack([flags(count) for count in rates])
    wide = Changes(spread.z, spread.rest, spread.own_z, spread.own_rest, drawn, spread.random_rest)
    assert against_random(wide.z, wide.random_z).p < 0.05
    assert not against_random(wide.z, wide.random_z).exceeds
    assert word(wide, changes(rest=17)) != "double dissociation"


def test_the_limit_is_that_of_a_further_draw() -> None:
    """Of five equal Gaussian rates the last lies above the limit of the first four 5 times in 100."""
    rng = np.random.default_rng(0)
    rates = rng.normal(0.5, 0.1, (2000, 5))
    above = sum(one[4] > prediction_limit(one[:4]) for one in rates)
    assert stats.binomtest(int(above), 2000, 0.05).pvalue > 0.001


def share(make: Make, words: tuple[str, ...], seed: int = 0) -> int:
    rng = np.random.default_rng(seed)
    return sum(word_of(make(rng)) in words for _ in range(REPEATS))


@pytest.mark.parametrize("name", NOTHING)
def test_claims_without_an_effect_stay_below_five_per_cent(name: str) -> None:
    false = share(NOTHING[name], CLAIMS)
    # At most 5 %, allowing what a rate of exactly 5 % would give by chance in 300 repeats.
    assert stats.binomtest(false, REPEATS, 0.05, alternative="greater").pvalue > 0.01, false


def test_planted_dissociations_are_found() -> None:
    double = share(answers(CONTENT, SCAFFOLD), ("double dissociation",))
    assert double / REPEATS > 0.9
    partial = share(answers(WEAK, same(SMALL)), ("partial",))
    assert partial / REPEATS > 0.6


def test_resemblance_compares_every_outcome() -> None:
    full = np.array([[0, 0], [1, 0], [2, 1]])
    z, rest = np.array([[0, 0], [1, 1], [2, 1]]), np.array([[0, 0], [0, 0], [2, 0]])
    like_z, like_rest = resemblance(full, z, rest)
    assert like_z.tolist() == [True, False, True]
    assert like_rest.tolist() == [True, False, False]


def test_rates_need_problems() -> None:
    assert rate(np.zeros(0, dtype=bool)) is None
    interval = rate(flags(5))
    assert interval is not None
    assert interval.low < interval.estimate == 0.25 < interval.high


def test_outcomes_of_other_problems_are_refused() -> None:
    good = changes()
    with pytest.raises(AnalysisError, match="not of the same problems"):
        Changes(good.z[:5], good.rest, good.own_z, good.own_rest, good.random_z, good.random_rest)
    with pytest.raises(AnalysisError, match="not of the same problems"):
        Changes(good.z, good.rest, good.own_z, good.own_rest, good.random_z[:1], good.random_rest)


def test_the_method_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "docs" / "methods" / "z_patching.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    exec(compile(block, "z_patching.md", "exec"), {})
    assert "double dissociation {'answer': 0.0001, 'language': 0.0001}" in capsys.readouterr().out
