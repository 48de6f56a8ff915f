"""Means by part: intervals, p against every possible dealing of the values, and which parts are larger."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from engine.stats.means import bootstrap_mean
from engine.stats.parts import by_part, larger


def welch(values: np.ndarray, own: np.ndarray) -> float:
    return float(stats.ttest_ind(values[own], values[~own], equal_var=False).statistic)


def test_p_is_the_share_of_dealings_whose_largest_t_is_as_large() -> None:
    """Every one of the 8! orders, by scipy's t."""
    rng = np.random.default_rng(3)
    values = rng.lognormal(size=8)
    values[:4] += 1.0
    keys = ["a"] * 4 + ["b"] * 4
    own = np.array(keys) == "a"
    seen = {welch(values, own): 0.0, welch(values, ~own): 0.0}
    every = []
    for chosen in {tuple(sorted(p[:4])) for p in permutations(range(8))}:
        side = np.isin(np.arange(8), chosen)
        every.append(max(welch(values, side), welch(values, ~side)))
    for t in seen:
        seen[t] = float(np.mean(np.array(every) >= t - 1e-12))
    found = {part.key: part for part in by_part(values, keys, n_boot=200, draws=9999)}
    assert found["a"].p == pytest.approx(seen[welch(values, own)], abs=0.02)
    assert found["b"].p == pytest.approx(seen[welch(values, ~own)], abs=0.02)


def test_means_and_intervals_are_those_of_the_parts_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=30)
    keys = [("x", "y", None)[i % 3] for i in range(30)]
    groups = np.arange(30) // 6  # five units, each in every part
    found = by_part(values, keys, groups, n_boot=300, seed=7, draws=99)
    assert [(part.key, part.n, part.units) for part in found] == [("x", 10, 5), ("y", 10, 5)]
    own = np.array([key == "x" for key in keys])
    assert found[0].interval == bootstrap_mean(values[own], groups=groups[own], n_boot=300, seed=7)
    other = np.array([key == "y" for key in keys])
    assert found[0].rest == found[1].interval
    assert found[0].rest.estimate == pytest.approx(values[other].mean())


def test_a_triggered_part_is_larger_and_small_ones_are_not_judged() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [0.8 * rng.lognormal(0, 0.4, 12), 0.002 * rng.lognormal(0, 0.4, 24), [5.0, 5.0, 5.0]]
    )
    keys = ["trigger"] * 12 + ["plain"] * 24 + ["tiny"] * 3
    found = by_part(values[:-3], keys[:-3], n_boot=400)
    assert [part.key for part in larger(found)] == ["trigger"]
    assert larger(by_part(values[:-3], keys[:-3], n_boot=400, floor=10.0)) == []
    all_of = by_part(values, keys, n_boot=400)
    assert np.isnan(all_of[2].p)
    assert "tiny" not in [part.key for part in larger(all_of)]


def test_equal_values_and_a_single_part_say_nothing() -> None:
    same = by_part(np.ones(12), ["a", "b"] * 6, n_boot=200, draws=199)
    assert [part.p for part in same] == [1.0, 1.0]
    assert larger(same) == []
    (alone,) = by_part(np.arange(6.0), ["a"] * 6, n_boot=200)
    assert np.isnan(alone.p)
    assert np.isnan(alone.rest.estimate)
    assert larger([alone]) == by_part(np.arange(3.0), [None] * 3) == []
    apart = by_part(np.repeat([0.0, 1.0], 6), ["a"] * 6 + ["b"] * 6, n_boot=200)
    assert [part.key for part in larger(apart)] == ["b"], "no spread on either side"
