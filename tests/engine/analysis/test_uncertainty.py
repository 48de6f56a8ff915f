"""Intervals and tests: hand-worked values, coverage, and the exact random-subspace null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.errors import AnalysisError
from engine.geometry.z import random_basis
from engine.stats.means import bootstrap_mean, bootstrap_ratio, expanded_level
from engine.stats.uncertainty import (
    energy_fraction,
    holm,
    mcnemar_exact,
    random_subspace_moments,
    resample_weights,
    wilson,
)


def test_mean_interval_agrees_with_normal_theory_and_is_reproducible() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=400)
    found = bootstrap_mean(values, n_boot=4000, seed=1)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.estimate == pytest.approx(values.mean())
    # 4000 resamples: the ends carry about 4 % of the half width
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)
    assert found == bootstrap_mean(values, n_boot=4000, seed=1)
    assert found != bootstrap_mean(values, n_boot=4000, seed=2)
    assert "prompts" in found.method


def test_mean_interval_covers_at_the_nominal_rate() -> None:
    hits = 0
    for seed in range(400):
        values = np.random.default_rng(seed).normal(size=60)
        found = bootstrap_mean(values, n_boot=300, seed=seed)
        hits += found.low <= 0 <= found.high
    assert 0.90 < hits / 400 < 0.98  # 0.95 ± 3·0.011, and the percentile method's small-sample deficit


def test_groups_are_drawn_as_wholes() -> None:
    groups = np.array(["a", "b", "a", "c", "b", "a"])
    weights = resample_weights(6, 200, 0, groups)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(1), 3)
    values = np.repeat(np.random.default_rng(0).normal(size=100), 4)
    wide = bootstrap_mean(values, groups=np.arange(400) // 4)
    narrow = bootstrap_mean(values)
    # four copies of each value carry the information of one: intervals twice as wide
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.0, rel=0.15)
    assert "groups" in wide.method


def test_ratio_is_paired() -> None:
    rng = np.random.default_rng(0)
    raw = rng.lognormal(sigma=1.5, size=150)
    mapped = 0.4 * raw * np.exp(0.05 * rng.normal(size=150))
    drop = bootstrap_ratio(raw - mapped, raw)
    assert drop.estimate == pytest.approx(1 - mapped.sum() / raw.sum())
    # the planted drop is 0.6; five standard errors
    assert drop.estimate == pytest.approx(0.6, abs=5 * (drop.high - drop.low) / 4)
    unpaired = bootstrap_ratio(raw - rng.permutation(mapped), raw)
    assert drop.high - drop.low < 0.3 * (unpaired.high - unpaired.low)


def test_wilson_and_mcnemar_equal_scipy() -> None:
    for k, n in ((0, 5), (3, 20), (20, 20), (117, 400)):
        ours, theirs = wilson(k, n), stats.binomtest(k, n).proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert ours.estimate == k / n
    for b, c in ((0, 6), (1, 9), (5, 5), (12, 3)):
        assert mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) > 0.05 > mcnemar_exact(0, 6)  # six discordant pairs are the least


def test_holm_by_hand_and_its_familywise_rate() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan])), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1.0, 1.0])
    rng = np.random.default_rng(0)
    wrong = np.mean([(holm(rng.random(12)) <= 0.05).any() for _ in range(2000)])
    assert wrong < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_random_subspace_moments_equal_monte_carlo() -> None:
    rng = np.random.default_rng(0)
    d, k = 12, 4
    x = rng.normal(size=(7, d)) * np.linspace(2, 0.2, d)
    s = x.T @ x
    mean, variance = random_subspace_moments(d, k, np.trace(s), float((s * s).sum()))
    draws = []
    for seed in range(6000):
        b = random_basis(d, k, seed)
        draws.append(np.trace(b.T @ s @ b))
    assert mean == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / np.sqrt(6000))
    assert variance == pytest.approx(np.var(draws), rel=0.07)  # √(2/6000)·(tails) ≈ 2 %, three times that


@pytest.mark.parametrize("normalise", [True, False])
def test_energy_fraction_equals_the_trace_and_its_p_is_uniform_for_random_bases(normalise: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 40)) * np.linspace(3, 0.1, 40)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
    s = rows.T @ rows
    s /= np.trace(s)
    p = []
    for seed in range(400):
        b = random_basis(40, 6, seed)
        found = energy_fraction(x, b, normalise_rows=normalise)
        assert found.fraction == pytest.approx(np.trace(b.T @ s @ b))
        assert found.mean == pytest.approx(6 / 40)
        p.append(found.p)
    assert found.ratio == pytest.approx(found.fraction / (6 / 40))
    # rate at 5 %: binomial sd 0.011; the Beta's own error is a few tenths of a percent
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_single_row_follows_the_exact_beta_law() -> None:
    x, b = np.random.default_rng(0).normal(size=(1, 30)), random_basis(30, 5, 3)
    found = energy_fraction(x, b)
    assert found.p == pytest.approx(stats.beta.sf(found.fraction, 2.5, 12.5), rel=1e-9)


def test_planted_energy_is_found_also_after_removing_directions() -> None:
    rng = np.random.default_rng(0)
    basis, top = random_basis(50, 4, 0), random_basis(50, 3, 1)
    x = (
        rng.normal(size=(30, 50))
        + 6 * rng.normal(size=(30, 4)) @ basis.T
        + 40 * rng.normal(size=(30, 3)) @ top.T
    )
    hidden, cleared = energy_fraction(x, basis), energy_fraction(x, basis, removed=top)
    assert hidden.p > 0.05  # the dominant directions hide it
    assert cleared.p < 1e-6
    assert cleared.d == 47
    inside = energy_fraction(x, np.concatenate([top[:, :1], basis], axis=1), removed=top)
    assert inside.k == 4  # the removed direction takes its dimension with it


def test_bad_input_is_refused_with_its_reason() -> None:
    one = np.ones(4)
    for call, says in (
        (lambda: bootstrap_ratio(one, np.ones(3)), "(4,) and (3,)"),
        (lambda: bootstrap_ratio(one, np.zeros(4)), "no denominator"),
        (lambda: bootstrap_mean(np.array([1.0, np.nan])), "1 NaN"),
        (lambda: bootstrap_mean(np.ones(1)), "Add prompts"),
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: mcnemar_exact(-1, 2), "-1 and 2"),
        (lambda: random_subspace_moments(4, 5, 1, 1), "k = 5, d = 4"),
        (lambda: energy_fraction(np.zeros((3, 5)), np.eye(5)[:, :2]), "0 non-zero rows"),
    ):
        with pytest.raises(AnalysisError) as caught:
            call()
        assert says in str(caught.value)


def test_the_expanded_level_gives_the_mean_of_few_units_its_interval() -> None:
    """At the expanded level a normal law, as wide as the bootstrap, has the ends of Student's interval."""
    for n in (5, 20, 200):
        level = expanded_level(0.95, n)
        ends = stats.norm.ppf((1 + level) / 2) * np.sqrt((n - 1) / n)
        assert ends == pytest.approx(stats.t.ppf(0.975, n - 1), rel=1e-6)
    assert expanded_level(0.95, 1) == 0.95
    rng, hits = np.random.default_rng(0), 0
    for seed in range(400):
        values = rng.normal(size=10)
        found = bootstrap_mean(values, level=expanded_level(0.95, 10), seed=seed)
        hits += found.low <= 0 <= found.high
    # 95 % of 400 within three standard errors; the plain percentile interval covers 90 %
    assert hits >= 400 * 0.95 - 3 * np.sqrt(400 * 0.05 * 0.95)
