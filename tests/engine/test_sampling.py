"""Random samples of prompts: whole groups, fair shares, and intervals that cover what sampling adds."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from engine.similarity import cka
from engine.similarity.sampling import gram_bytes, keeps_grams, sample_prompts
from engine.stats.sampling import sample_rows
from engine.stats.uncertainty import wilson


def test_few_rows_are_all_taken() -> None:
    np.testing.assert_array_equal(sample_rows(np.arange(7), most=7), np.arange(7))


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_the_sample_is_as_large_as_they_allow(seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(300), 3))
    rows = sample_rows(groups, most=200, seed=seed)
    assert (np.diff(rows) > 0).all()
    assert rows.size == 198  # 66 groups of 3
    assert set(np.bincount(groups[rows])) == {0, 3}


def test_every_stratum_gives_its_share_within_one_group() -> None:
    sizes = np.array([1500, 640, 90, 7])
    strata = np.repeat(np.arange(4), 2 * sizes)
    groups = np.repeat(np.arange(sizes.sum()), 2)
    for seed in range(20):
        rows = sample_rows(groups, strata, most=500, seed=seed)
        found = np.bincount(strata[rows], minlength=4) / 2
        assert (np.abs(found - 250 * sizes / sizes.sum()) <= 1).all()


def test_every_group_is_as_likely_as_any_other() -> None:
    strata = np.repeat([0, 1, 2], [101, 23, 6])
    draws = 1000
    counts = sum(
        np.bincount(sample_rows(np.arange(130), strata, most=40, seed=s), minlength=130) for s in range(draws)
    )
    share = 40 / 130
    # 130 shares at once: their largest z stays under 4.1 in 99 % of runs; systematic draws vary no more
    assert (np.abs(counts / draws - share) / np.sqrt(share * (1 - share) / draws)).max() < 4.1


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    groups, strata = np.repeat(np.arange(400), 2), np.repeat(np.arange(4), 200)
    small, large = (sample_rows(groups, strata, most=m, seed=3) for m in (100, 300))
    assert set(small) < set(large)


def test_large_groups_give_a_part_of_themselves() -> None:
    groups = np.concatenate([np.zeros(3000, int), np.arange(1, 501)])
    language = np.where(np.arange(3500) < 1000, "en", "zh")
    rows = sample_rows(groups, language, most=400, seed=1)
    assert 350 < rows.size <= 400
    clusters = np.repeat(np.arange(20), 200)  # too few to leave any out: a part of each
    found = np.bincount(clusters[sample_rows(clusters, most=400, seed=0)])
    np.testing.assert_array_equal(found, 20)
    halves = np.tile(np.repeat(["en", "zh"], 100), 20)  # which keeps the shares inside it
    inside = sample_rows(clusters, halves, most=400, seed=0)
    assert abs((halves[inside] == "en").sum() - 200) <= 20


def test_a_prompts_table_is_sampled_by_pair_language_and_category() -> None:
    n = 400
    table = pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(2 * n)],
            "pair_id": [None if i >= 2 * n - 100 else f"q{i // 2}" for i in range(2 * n)],
            "language": ["en", "zh"] * n,
            "category": [("add", "sub")[i // 2 % 4 == 0] for i in range(2 * n)],
        }
    )
    rows = sample_prompts(table, most=200, seed=0)
    part = table[rows]
    assert part.height in (199, 200)
    counts = part.drop_nulls("pair_id").group_by("pair_id").len()["len"]
    assert set(counts) == {2}
    assert part["pair_id"].null_count() == pytest.approx(25, abs=2)
    assert (part["category"] == "sub").mean() == pytest.approx(0.25, abs=0.02)
    few = np.arange(0, 2 * n, 2)
    np.testing.assert_array_equal(sample_prompts(table, few, most=400), few)
    assert set(sample_prompts(table, few, most=100)) < set(few)


def test_a_gram_is_kept_of_few_prompts_or_of_wide_sites() -> None:
    assert keeps_grams(900, 64, 1000)
    assert gram_bytes(900, 64, 1000) == 4 * 900**2
    assert not keeps_grams(10_000, 999, 1000)
    assert gram_bytes(10_000, 999, 1000) == 0
    # 10,000 prompts, 4 sites of 33 states at d = 4096 in bfloat16: within 1.3 times the activations
    assert 4 * 33 * gram_bytes(10_000, 4096) < 0.3 * 4 * 33 * 10_000 * 4096 * 2


def population(seed: int, related: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two sides of 1500 pairs in three categories that lie apart; with `related` = 0 they share nothing."""
    rng = np.random.default_rng(seed)
    pairs, spectrum = 1500, 1 / np.arange(1, 21)
    groups, category = np.repeat(np.arange(pairs), 2), np.repeat(np.arange(pairs) % 3, 2)
    shared = np.repeat(rng.normal(size=(pairs, 20)), 2, 0) + 0.7 * rng.normal(size=(2 * pairs, 20))
    x = shared * spectrum
    other = np.repeat(rng.normal(size=(pairs, 20)), 2, 0) + 0.7 * rng.normal(size=(2 * pairs, 20))
    y = (related * shared + (1 - related) * other) * spectrum
    return x, y @ np.linalg.qr(rng.normal(size=(20, 20)))[0], groups, category


def test_the_interval_of_a_sample_covers_the_value_of_all_prompts() -> None:
    x, y, groups, category = population(0, 0.6)
    truth = [float(cka.linear_cka(x, y, debiased)) for debiased in (False, True)]
    runs, covered, width, error = 150, np.zeros(2), np.zeros(2), np.zeros((150, 2))
    for seed in range(runs):
        rows = sample_rows(groups, category, most=400, seed=seed)
        bands = cka.bootstrap_curves(
            cka.gram(x[rows]), cka.gram(y[rows]), groups=groups[rows], n_boot=300, seed=seed
        )
        covered += [band.low <= t <= band.high for band, t in zip(bands, truth, strict=True)]
        width += [float(band.high - band.low) / runs for band in bands]
        error[seed] = [float(band.estimate) - t for band, t in zip(bands, truth, strict=True)]
    for hits in covered:
        assert wilson(int(hits), runs).high > 0.95  # nominal, or more: an eighth of the population is seen
    # and not by being of no use: four standard errors of a sample on either side is the most it says
    assert (width < 8 * error.std(axis=0)).all()
    assert (np.abs(error.mean(axis=0)) < 4 * error.std(axis=0) / np.sqrt(runs) + 0.005).all()


def test_the_null_of_a_sample_is_calibrated_and_finds_what_is_there() -> None:
    p = []
    for seed in range(120):
        x, y, groups, category = population(seed, 0.0)
        rows = sample_rows(groups, category, most=200, seed=seed)
        null = cka.permutation_null(
            cka.gram(x[rows]), cka.gram(y[rows]), groups=groups[rows], n_draws=79, seed=seed
        )
        p.append(float(null.p))
    assert wilson(int((np.array(p) <= 0.05).sum()), len(p)).low < 0.05
    assert stats.kstest(p, "uniform").pvalue > 0.001
    x, y, groups, category = population(0, 0.6)
    rows = sample_rows(groups, category, most=200)
    found = cka.permutation_null(cka.gram(x[rows]), cka.gram(y[rows]), groups=groups[rows], n_draws=79)
    assert float(found.p) < 0.02
