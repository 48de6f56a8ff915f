"""The interval of a mean of few skewed differences: how often it finds one, there or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.stats.means import FEWEST, UNSEEN, bootstrap_means, bootstrap_ratios, exceed, expanded_level
from engine.stats.uncertainty import resample_weights

Array = np.ndarray
Law = Callable[[np.random.Generator, tuple[int, int]], Array]


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.lognormal(size=shape) - np.exp(0.5)


def exponential(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.exponential(size=shape) - 1


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.normal(size=shape)


def fails_on_some(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Gains on three prompts of four, and loses three times as much on the others: 0 on average."""
    return rng.lognormal(0, 0.5, shape) * np.where(rng.random(shape) < 0.25, -3, 1)


SAMPLES = 1500
SLACK = 3 * np.sqrt(0.05 * 0.95 / SAMPLES)
"""Three standard errors of a rate of 5 %."""


CASES = [(law, n) for law in (lognormal, exponential, normal, fails_on_some) for n in (8, 12, 24, 42)]


@pytest.mark.parametrize(
    ("law", "units"), [case for case in CASES if case[0] is not fails_on_some or case[1] >= FEWEST]
)
def test_a_difference_that_is_not_there_is_found_in_at_most_five_percent(law: Law, units: int) -> None:
    values = law(np.random.default_rng(units), (SAMPLES, units))
    found = bootstrap_means(values, seed=1)
    assert ((found.low > 0) | (found.high < 0)).mean() <= 0.05 + SLACK


def test_the_percentile_interval_would_fail_that_test() -> None:
    values = lognormal(np.random.default_rng(12), (SAMPLES, 12))
    draws = values @ resample_weights(12, 1000, 1).T / 12
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    assert ((low > 0) | (high < 0)).mean() > 0.14


@pytest.mark.parametrize(("units", "size", "least"), [(12, 1.5, 0.9), (24, 1.0, 0.9), (42, 0.7, 0.9)])
def test_a_difference_that_is_there_is_found(units: int, size: float, least: float) -> None:
    """Of normal differences, in standard deviations; Student's test finds these in 99 %."""
    values = normal(np.random.default_rng(0), (500, units)) + size
    assert (bootstrap_means(values).low > 0).mean() >= least


@pytest.mark.parametrize("law", [lognormal, normal])
def test_of_many_means_none_is_named_in_95_percent(law: Law) -> None:
    """Twenty-eight differences at a time, of the same 20 prompts."""
    said = 0
    for seed in range(300):
        values = law(np.random.default_rng(seed), (28, 20))
        found = bootstrap_means(values, seed=seed, together=True, n_boot=1000)
        said += bool(((found.low > 0) | (found.high < 0)).any())
    assert said / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_of_many_means_the_one_that_differs_is_named() -> None:
    found_it = 0
    for seed in range(50):
        values = normal(np.random.default_rng(seed), (28, 20))
        values[3] += 2
        found = bootstrap_means(values, seed=seed, together=True)
        found_it += found.low[3] > 0
    assert found_it >= 45


def test_groups_of_unequal_size_are_the_units() -> None:
    """Prompts of a template share their difference: 12 templates of one to five prompts."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    values = rng.normal(size=(SAMPLES, 12))[:, groups] + 0.3 * rng.normal(size=(SAMPLES, groups.size))
    clustered, alone = bootstrap_means(values, groups=groups), bootstrap_means(values)
    assert ((clustered.low > 0) | (clustered.high < 0)).mean() <= 0.05 + SLACK
    assert ((alone.low > 0) | (alone.high < 0)).mean() > 0.15


def test_the_ends_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    top, bottom = rng.lognormal(size=(2, 30))
    groups = np.repeat(np.arange(15), 2)
    found = bootstrap_ratios(top, bottom, groups=groups, n_boot=400, seed=3)
    tops, bottoms = top.reshape(15, 2).sum(1), bottom.reshape(15, 2).sum(1)

    def ratio(a: Array, b: Array) -> tuple[float, float]:
        own = a.sum() / b.sum()
        return own, float(np.sqrt(15 / 14 * ((a - own * b) ** 2).sum()) / b.sum())

    estimate, se = ratio(tops, bottoms)
    t = []
    for count in resample_weights(15, 400, 3):
        drawn = np.repeat(np.arange(15), count.astype(int))
        own, spread = ratio(tops[drawn], bottoms[drawn])
        t.append((own - estimate) / spread)
    tail = (1 - expanded_level(0.95, 15)) / 2 * 15 / (15 + UNSEEN)
    low, high = np.quantile(t, [tail, 1 - tail])
    ends = float(found.estimate), float(found.low), float(found.high)
    assert ends == pytest.approx((estimate, estimate - high * se, estimate - low * se), rel=1e-9)


def test_few_units_and_equal_ones() -> None:
    two = bootstrap_means(np.array([1.0, 2.0]))
    assert two.low < -2  # Student's with one degree of freedom: 12.7 standard errors
    assert two.high > 5
    same = bootstrap_means(np.full((2, 9), 0.1))
    np.testing.assert_array_equal(same.low, same.high)
    mixed = bootstrap_means(np.stack([np.full(9, 0.1), np.arange(9.0)]), together=True)
    assert mixed.low[0] == mixed.high[0] == mixed.estimate[0]
    assert mixed.low[1] < 4 < mixed.high[1]


def test_what_exceeds_a_floor_is_found_of_few_and_no_more_than_chance_allows() -> None:
    rng = np.random.default_rng(0)
    for law in (lambda shape: rng.exponential(size=shape), lambda shape: 20.0 * (rng.random(shape) < 0.05)):
        for units in (2, 8, 30):
            assert exceed(law((2000, units)), 1.0).mean() <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 2000)
    assert exceed(np.array([[0.3, 0.9], [1e-6, 2e-6]]), 1e-6).tolist() == [True, False]
    pairs = np.array([0.0, 3.0, 0.0, 3.0])
    assert exceed(pairs, 0.1, groups=np.array([0, 0, 1, 1]))
    assert not exceed(pairs, 1.0, groups=np.array([0, 0, 1, 1]))
    assert exceed(np.array([0.0, 1e-9]), 0.0)
