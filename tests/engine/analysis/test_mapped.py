"""Mapped patches in numbers: the chosen amplitude, reductions, correlations, and the two random controls."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from engine.errors import AnalysisError
from engine.patching.numbers import (
    RandomRotation,
    Resampling,
    best_alpha,
    correlation,
    cosines,
    reduction,
    reductions,
    row_space,
    shuffled_pairs,
    weighted_pearson,
    weighted_ranks,
)
from engine.stats.means import bootstrap_mean, bootstrap_ratio
from engine.stats.uncertainty import Interval
from engine.transport import RidgeTransport, ScaledProcrustes

FLOOR = 1e-6


def pairs(count: int) -> np.ndarray:
    return np.repeat(np.arange(count), 2)


def test_alpha_is_the_smallest_mean_and_nearest_to_one_among_equals() -> None:
    kl = np.array([[0.5, 0.3], [0.1, 0.5], [0.2, 0.4], [0.9, 0.1]])
    assert best_alpha(kl, (0.0, 0.7, 0.9, 2.0)) == 2  # means 0.4, 0.3, 0.3, 0.5
    assert best_alpha(kl + np.array([[0.0], [0.0], [1e-3], [0.0]]), (0.0, 0.7, 0.9, 2.0)) == 1
    flat = np.full((3, 5), 0.2) + 1e-7 * np.random.default_rng(0).normal(size=(3, 5))
    assert best_alpha(flat, (0.2, 1.0, 1.8)) == 1
    with pytest.raises(AnalysisError, match="1 not finite"):
        best_alpha(np.array([[np.nan, 0.1]]), (1.0,))
    with pytest.raises(AnalysisError, match="train split with prompts"):
        best_alpha(np.empty((3, 0)), (0.5, 1.0, 1.5))


def test_means_and_ratios_are_those_of_the_shared_bootstrap() -> None:
    rng = np.random.default_rng(0)
    raw, mapped = rng.gamma(2.0, size=(2, 40))
    how = Resampling(pairs(20), n_boot=300, level=0.9, seed=3)
    found = how.means(np.stack([raw, mapped]))
    for i, values in enumerate((raw, mapped)):
        wanted = bootstrap_mean(values, groups=pairs(20), n_boot=300, level=0.9, seed=3)
        # the same sums in another order
        assert (found.at(i).estimate, found.at(i).low, found.at(i).high) == pytest.approx(
            (wanted.estimate, wanted.low, wanted.high), rel=1e-12
        )
    less = reduction(raw, mapped, FLOOR, how)
    wanted = bootstrap_ratio(100 * (raw - mapped), raw, groups=pairs(20), n_boot=300, level=0.9, seed=3)
    assert less.drop == wanted
    assert less.delta.estimate == pytest.approx((raw - mapped).mean())


def test_a_reduction_is_paired() -> None:
    """What both conditions share cancels: prompts that differ a lot leave a narrow interval."""
    raw = np.random.default_rng(1).gamma(0.3, 5.0, size=60)
    less = reduction(raw, 0.25 * raw, FLOOR, Resampling(np.arange(60)))
    assert less.drop is not None
    assert (less.drop.low, less.drop.estimate, less.drop.high) == pytest.approx((75, 75, 75))
    assert less.delta.high - less.delta.low > 0.3 * less.delta.estimate


def test_a_share_of_nothing_is_undefined_and_says_why() -> None:
    how = Resampling(np.arange(10))
    for raw in (np.zeros(10), np.full(10, 9e-7), np.full(10, -1e-8)):
        less = reduction(raw, np.full(10, 0.01), FLOOR, how)
        assert less.drop is None
        assert "within the self-patch floor of 1e-6" in less.reason
        assert less.delta.high < 0
    assert reduction(np.full(10, 2e-6), np.zeros(10), FLOOR, how).drop is not None


def test_drop_covers_the_truth_at_the_nominal_rate() -> None:
    """Positive control and null: raw has mean 1, mapped 0.4 (drop 60 %) or 1 (drop 0 %)."""
    for mean in (0.4, 1.0):
        hits = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            shared = rng.gamma(4.0, 0.25, size=60)
            raw, mapped = shared * rng.gamma(4, 0.25, 60), mean * shared * rng.gamma(4, 0.25, 60)
            drop = reduction(raw, mapped, FLOOR, Resampling(np.arange(60), 300, 0.95, seed)).drop
            assert drop is not None
            hits += drop.low <= 100 * (1 - mean) <= drop.high
        assert 0.88 < hits / 200 < 0.995  # 0.95 ± 3·0.015, and the percentile method's deficit at n = 60


def test_cosines_are_by_row_and_undefined_without_length() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [3.0, 3.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosines(a, b), [0.0, 1.0, np.nan])


def test_weighted_ranks_equal_ranks_of_repeated_values() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, size=(2, 25)).astype(float)
    weights = rng.integers(0, 4, size=(5, 25)).astype(float)
    ranks_x, ranks_y = weighted_ranks(x, weights), weighted_ranks(y, weights)
    spearman = weighted_pearson(ranks_x, ranks_y, weights)
    pearson = weighted_pearson(x, y, weights)
    for b, w in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(25), w)
        np.testing.assert_allclose(ranks_x[b][repeated], stats.rankdata(x[repeated]))
        assert spearman[b] == pytest.approx(stats.spearmanr(x[repeated], y[repeated]).statistic)
        assert pearson[b] == pytest.approx(stats.pearsonr(x[repeated], y[repeated]).statistic)


def test_correlation_equals_scipy_and_follows_a_monotone_relation() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=80)
    y = np.exp(2 * x) + 0.05 * rng.normal(size=80)
    found = correlation(x, y, Resampling(np.arange(80), 400))
    assert found.spearman is not None
    assert found.pearson is not None
    assert found.spearman.estimate == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.pearson.estimate == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.spearman.low > 0.9 > found.pearson.estimate


def test_correlation_of_unrelated_values_excludes_zero_rarely() -> None:
    misses = 0
    for seed in range(200):
        x, y = np.random.default_rng(seed).normal(size=(2, 60))
        found = correlation(x, y, Resampling(np.arange(60), 300, seed=seed)).spearman
        assert found is not None
        misses += not found.low <= 0 <= found.high
    assert misses / 200 < 0.11  # 0.05 + 3·0.015, and the percentile method's deficit at n = 60


def test_correlation_without_variation_or_prompts_is_undefined() -> None:
    how = Resampling(np.arange(12))
    flat = correlation(np.ones(12), np.arange(12.0), how)
    assert flat.spearman is None
    assert flat.pearson is None
    assert "same for every prompt" in flat.reason
    holes = np.where(np.arange(12) < 9, np.nan, 1.0)
    few = correlation(holes, np.arange(12.0), how)
    assert "3 prompts or pairs are too few" in few.reason


def test_shuffled_pairs_move_whole_pairs_and_keep_languages() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(20)
    groups, roles = pairs(10)[order], np.array(["en", "zh"] * 10)[order]
    partner = shuffled_pairs(groups, roles, seed=1)
    assert sorted(partner) == list(range(20))
    assert (roles[partner] == roles).all()
    for group in range(10):
        assert len(set(groups[partner[groups == group]])) == 1
    assert (groups[partner] != groups).sum() >= 10  # one of ten stays where it is on average
    assert (shuffled_pairs(groups, roles, seed=2) != partner).any()


def test_a_prompt_without_its_pair_changes_places_with_its_like_only() -> None:
    groups, roles = np.array([0, 0, 1, 1, 2, 3]), ["en", "zh", "en", "zh", "en", "en"]
    for seed in range(20):
        partner = shuffled_pairs(groups, roles, seed)
        assert set(partner[:4]) == {0, 1, 2, 3}
        assert set(partner[4:]) == {4, 5}
    with pytest.raises(AnalysisError, match="no two of them have the same languages"):
        shuffled_pairs(np.array([0, 0, 1]), ["en", "zh", "en"], 0)


def test_a_random_rotation_keeps_the_spectrum_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)) * np.linspace(3, 0.1, 30)
    y = 2.0 + x @ rng.normal(size=(30, 50)) + 0.1 * rng.normal(size=(40, 50))
    for estimator in (RidgeTransport(), ScaledProcrustes(n_components=5)):
        mapped = estimator.fit(x, y).predict(x)
        centre = y.mean(axis=0)
        basis = row_space(np.vstack([y - centre, mapped - centre]))
        assert basis.shape == (50, 39)  # what is centred on 40 rows spans 39; the map writes inside
        np.testing.assert_allclose(basis.T @ basis, np.eye(39), atol=1e-12)
        turned = RandomRotation.of(centre, basis, seed=3).apply(mapped)
        wanted = np.linalg.svd(mapped - centre, compute_uv=False)
        np.testing.assert_allclose(
            np.linalg.svd(turned - centre, compute_uv=False), wanted, atol=1e-9 * wanted[0]
        )
        # a random direction among 39: cosines of 0 with sd 1/√39, their mean over rows about as wide
        assert abs(np.nanmean(cosines(turned - centre, y - centre))) < 4 / np.sqrt(39)
        assert np.nanmean(cosines(mapped - centre, y - centre)) > 0.7


def test_rotations_are_uniform() -> None:
    """First and second moments of Haar-orthogonal entries: 0 and 1/r; the trace has variance 1."""
    drawn = [RandomRotation.of(np.zeros(5), np.eye(5), seed).rotation for seed in range(2000)]
    stack = np.stack(drawn)
    np.testing.assert_allclose(
        np.swapaxes(stack, 1, 2) @ stack, np.broadcast_to(np.eye(5), stack.shape), atol=1e-12
    )
    # 2000 draws: standard errors 0.01 and about 0.005
    assert np.abs(stack.mean(axis=0)).max() < 0.05
    assert np.abs((stack**2).mean(axis=0) - 0.2).max() < 0.025
    assert np.trace(stack, axis1=1, axis2=2).var() == pytest.approx(1.0, abs=0.12)


def test_the_page_about_patching_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "docs" / "methods" / "patching.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], page.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.0 80.0 True"
    assert "KL_raw is 0 nats, within the self-patch floor" in lines[1]
    assert lines[2] == "True"


def ends(found: Interval | None) -> list[float]:
    return [] if found is None else [round(end, 10) for end in (found.estimate, found.low, found.high)]


def test_amplitudes_together_are_each_by_itself() -> None:
    rng = np.random.default_rng(3)
    raw = np.stack([rng.lognormal(size=40), np.full(40, 1e-9), 1e-4 * rng.lognormal(sigma=2.0, size=40)])
    mapped = raw * rng.uniform(0.2, 0.9, size=raw.shape)
    how = Resampling(np.arange(40) // 2)
    together = reductions(raw, mapped, 1e-6, how, 1e-3)
    assert [bool(one.reason) for one in together] == [False, True, True]
    for found, a, b in zip(together, raw, mapped, strict=True):
        alone = reduction(a, b, 1e-6, how, 1e-3)
        assert ends(found.delta) == ends(alone.delta) == ends(how.mean(a - b))
        assert (ends(found.drop), found.reason) == (ends(alone.drop), alone.reason)
    by_hand = bootstrap_ratio(100 * (raw - mapped)[0], raw[0], groups=how.groups)
    assert ends(together[0].drop) == ends(by_hand)
