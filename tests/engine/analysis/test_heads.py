"""Coverage of heads against loops written out, SciPy, exhaustive search, and simulated heads."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.calibration.effects import PLANTED_HEADS, said_localised, saturated
from benchmarks.calibration.effects import pushes as simulated
from benchmarks.calibration.entry import Make
from engine.errors import AnalysisError
from engine.heads import numbers as heads
from engine.heads.numbers import Heads
from engine.stats.means import bootstrap_ratio
from engine.stats.uncertainty import Interval


def pushes(rng: np.random.Generator, sizes: Sequence[float], n: int) -> np.ndarray:
    """What each head pushes at each prompt, (heads, n): its size times a size of the prompt, and noise."""
    return np.asarray(sizes)[:, None] * rng.lognormal(0, 0.5, n) * rng.normal(1, 0.3, (len(sizes), n))


def kl(push: np.ndarray, subset: Heads) -> np.ndarray:
    """A KL grows like the square of what is pushed: the second order of softmax, (n,)."""
    found: np.ndarray = 0.5 * push[sorted(subset)].sum(0) ** 2
    return found


def test_coverage_is_a_ratio_of_means_with_paired_resamples() -> None:
    rng = np.random.default_rng(0)
    whole, parts = rng.gamma(2.0, size=30), rng.gamma(1.0, size=(4, 30))
    groups = np.repeat(np.arange(15), 2)
    found = heads.coverages(parts, whole, groups=groups, n_boot=300, seed=3)
    np.testing.assert_allclose(found.estimate, 100 * parts.mean(1) / whole.mean(), rtol=1e-12)
    for row in range(4):
        one = bootstrap_ratio(100 * parts[row], whole, groups=groups, n_boot=300, seed=3)
        np.testing.assert_allclose((found.low[row], found.high[row]), (one.low, one.high), rtol=1e-12)
    both = heads.coverages(parts, whole, groups=groups, n_boot=300, seed=3, together=True)
    assert (both.low <= found.low).all()
    assert (both.high >= found.high).all()
    assert (both.high - both.low > found.high - found.low).sum() >= 3


def test_coverage_of_all_heads_is_100_without_an_interval_and_may_exceed_it() -> None:
    rng = np.random.default_rng(0)
    whole = rng.gamma(2.0, size=30)
    found = heads.coverages(np.stack([whole, 2 * whole, 0 * whole]), whole)
    for row, value in enumerate((100.0, 200.0, 0.0)):
        at = found.at(row)
        # the resampled sums of both sides are the same up to the order of their terms
        assert (at.estimate, at.low, at.high) == pytest.approx((value, value, value), abs=1e-9)


def test_coverage_refuses_other_prompts_and_nothing_to_divide_by() -> None:
    with pytest.raises(AnalysisError, match="same prompts"):
        heads.coverages(np.ones((2, 5)), np.ones(4))
    with pytest.raises(AnalysisError, match="undefined"):
        heads.coverages(np.ones((2, 5)), np.zeros(5))
    with pytest.raises(AnalysisError, match="undefined"):
        heads.coverages(np.full((2, 5), np.nan), np.ones(5))


def test_an_effect_is_divided_only_above_rounding() -> None:
    rng = np.random.default_rng(0)
    assert heads.effect(rng.gamma(2.0, 0.01, 40), 1e-7).shown
    nothing = heads.effect(rng.gamma(2.0, 1e-7, 40), 1e-7)
    assert not nothing.shown
    assert "nothing to cover" in nothing.reason
    assert nothing.threshold == 1e-5
    rough = heads.effect(rng.gamma(2.0, 0.01, 40), 5e-3)
    assert rough.threshold == pytest.approx(5e-2)
    assert not rough.shown
    one = np.zeros(40)
    one[0] = 1.0  # a mean of 0.025 nats from one prompt: resamples without it show nothing
    alone = heads.effect(one, 1e-7)
    assert not alone.shown
    assert "reaches rounding" in alone.reason


def test_ranking_is_by_the_mean_and_stable() -> None:
    assert heads.ranking(np.array([[0.0, 0], [1, 5], [0, 0], [4, 0]])) == [1, 3, 0, 2]


def test_greedy_takes_the_best_next_head_and_finds_a_planted_set() -> None:
    rng = np.random.default_rng(1)
    push = pushes(rng, [0.02, 0.02, 1.0, 0.02, 0.02, 0.02, 0.7, 0.02], 40)
    asked: list[list[Heads]] = []

    def score(subsets: Sequence[Heads]) -> list[float]:
        asked.append(list(subsets))
        return [float(kl(push, subset).mean()) for subset in subsets]

    order = heads.greedy(8, 3, score)
    assert set(order[:2]) == {2, 6}
    assert [len(step) for step in asked] == [8, 7, 6]
    best = max(combinations(range(8), 2), key=lambda pair: float(kl(push, Heads(pair)).mean()))
    assert set(best) == {2, 6}
    assert heads.greedy(3, 8, lambda subsets: [0.0] * len(subsets)) == [0, 1, 2]


@pytest.mark.parametrize(("n", "k", "draws"), [(8, 2, 30), (8, 3, 30), (32, 5, 50), (4, 1, 20)])
def test_random_subsets_are_different_and_of_one_size(n: int, k: int, draws: int) -> None:
    found = heads.random_subsets(n, k, draws, seed=0)
    assert len(set(found)) == len(found) == min(draws, math.comb(n, k))
    assert all(len(subset) == k and max(subset) < n for subset in found)
    assert found == heads.random_subsets(n, k, draws, seed=0)


def test_random_subsets_hold_every_head_equally_often() -> None:
    counts = np.zeros(16)
    for seed in range(40):
        for subset in heads.random_subsets(16, 4, 50, seed):
            counts[sorted(subset)] += 1
    # 2000 sets of 4 of 16: each head 500 times, standard deviation at most 20
    assert np.abs(counts - 500).max() < 5 * 20


def test_over_draws_is_the_range_of_the_sets() -> None:
    values = np.arange(101.0)
    found = heads.over_draws(values, 0.9)
    assert (found.estimate, found.low, found.high) == pytest.approx((50.0, 5.0, 95.0))


def test_a_set_carries_from_95_percent_on() -> None:
    assert heads.carrying([92.0, 95.0, 99.0]) == 2
    assert heads.carrying([60.0, 94.9]) is None
    assert heads.carrying([120.0]) == 1


def test_localised_needs_few_heads_and_more_than_chance() -> None:
    tight = Interval(98.0, 95.0, 101.0, 0.95, "test")
    assert heads.is_localised(2, 8, tight, 25.0)
    assert not heads.is_localised(3, 8, tight, 25.0)
    assert not heads.is_localised(2, 8, tight, 50.0)
    assert not heads.is_localised(2, 8, Interval(60.0, 40.0, 80.0, 0.95, "test"), 10.0)


def test_localised_is_said_of_planted_heads_and_not_of_equal_ones() -> None:
    runs = 100

    def said(make: Make) -> int:
        return sum(said_localised(make(np.random.default_rng(seed))) for seed in range(runs))

    power = said(simulated(PLANTED_HEADS))
    equal, alike = said(simulated([0.5] * 8)), said(simulated([0.5] * 8, saturated))
    # at most 5 % within binomial error of 100 runs (two standard errors: 4.4 %)
    assert equal <= 9
    assert alike <= 9
    assert power >= 90


@pytest.mark.parametrize("n", [6, 12])
def test_rank_correlation_is_spearmans_with_a_permutation_p(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(size=n).round(1)  # with ties
    y = x + rng.normal(size=n)
    found = heads.rank_correlation(x, y, n_permutations=9999, seed=0)
    assert found.rho == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-12)
    reference = stats.permutation_test(
        (x,),
        lambda v: stats.spearmanr(v, y).statistic,
        permutation_type="pairings",
        n_resamples=4000 if n > 6 else np.inf,
        rng=np.random.default_rng(1),
    )
    # exact for 6 heads (SciPy doubles the smaller tail, so only the size agrees); else Monte-Carlo error
    assert found.p == pytest.approx(float(reference.pvalue), abs=0.05)


def test_rank_correlation_p_is_exact_for_few_heads() -> None:
    up = np.arange(5.0)
    found = heads.rank_correlation(up, up)
    assert (found.rho, found.p) == (pytest.approx(1.0), pytest.approx(2 / math.factorial(5)))


def test_rank_correlation_says_when_there_is_none() -> None:
    assert "too few" in heads.rank_correlation(np.arange(4.0), np.arange(4.0)).reason
    flat = heads.rank_correlation(np.zeros(8), np.arange(8.0))
    assert (flat.rho, flat.p) == (None, None)
    assert "same for every head" in flat.reason


def test_rank_correlation_of_unrelated_heads_is_rarely_significant() -> None:
    rng = np.random.default_rng(0)
    p = [
        heads.rank_correlation(rng.normal(size=8), rng.normal(size=8), n_permutations=499, seed=s).p
        for s in range(300)
    ]
    # 5 % of 300 is 15, standard deviation 3.8
    assert sum(value is not None and value < 0.05 for value in p) <= 27


def test_the_method_pages_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "docs" / "methods" / "heads.md"
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(block, page.name, "exec"), {})
    assert "greedy [2, 6]" in capsys.readouterr().out
