"""Rank figures against brute force, their null, and planted ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize

from engine.errors import AnalysisError
from engine.rank import numbers as ranks
from engine.stats.means import bootstrap_ratio, bootstrap_ratios

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    ("full", "grid"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 3, 4, 5, 6, 7, 8)),
        (16, (1, 2, 3, 4, 5, 6, 7, 8, 16)),
        (100, (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 100)),
    ],
)
def test_the_grid_ends_at_the_full_rank(full: int, grid: tuple[int, ...]) -> None:
    assert ranks.rank_grid(full) == grid


def test_no_rank_is_refused() -> None:
    with pytest.raises(AnalysisError, match="no rank"):
        ranks.rank_grid(0)


def test_partial_sums_are_projections() -> None:
    rng = np.random.default_rng(0)
    rows, basis = rng.normal(size=(5, 20)), ranks.random_basis(20, 20, 1)
    ks = ranks.rank_grid(20)
    sums = [s.copy() for s in ranks.partial_sums(rows @ basis, basis.T, ks)]
    for k, found in zip(ks, sums, strict=True):
        np.testing.assert_allclose(found, rows @ basis[:, :k] @ basis[:, :k].T, atol=1e-12)
    np.testing.assert_allclose(sums[-1], rows, atol=1e-12)


def test_planted_directions_come_first() -> None:
    rng = np.random.default_rng(0)
    planted = ranks.random_basis(50, 3, 2)
    rows = rng.normal(size=(200, 3)) @ planted.T * 5 + 2 * planted[:, 0] + 0.1 * rng.normal(size=(200, 50))
    found = ranks.leading_directions(rows)
    assert found.needed(0.95) == 3
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(50), atol=1e-12)
    cosines = np.linalg.svd(planted.T @ found.basis[:, :3], compute_uv=False)
    assert cosines.min() > 0.999
    null = ranks.sign_flipped_spectra(rows, draws=20, seed=0)
    above = found.sigma > np.quantile(null, 0.95, axis=0)
    assert above[:3].all()
    assert not above[3]


def test_exact_low_rank_has_that_many_directions() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 12))
    assert ranks.leading_directions(rows).sigma.size == 4
    assert ranks.leading_directions(np.zeros((30, 12))).sigma.size == 0
    assert ranks.leading_directions(np.zeros((30, 12))).needed() == 0


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_noise_rises_above_its_flipped_spectrum_as_often_as_it_should(shape: tuple[int, int]) -> None:
    rng, above = np.random.default_rng(3), []
    for seed in range(200):
        rows = rng.normal(size=shape)
        null = ranks.sign_flipped_spectra(rows, draws=39, seed=seed)
        assert null.shape == (39, 8)
        np.testing.assert_allclose((null**2).sum(axis=1), (rows**2).sum(), rtol=1e-9)
        above.append((np.linalg.svd(rows, compute_uv=False)[0] > null[:, 0]).sum() >= 38)
    # Symmetric noise and its flips are exchangeable: among the top 2 of 40 in 5 %, binomial sd 1.5 %.
    assert np.mean(above) < 0.05 + 3 * 0.015


def test_bands_are_those_of_single_ratios() -> None:
    rng = np.random.default_rng(0)
    kl, raw = rng.gamma(2.0, size=(3, 2, 40)), rng.gamma(3.0, size=40)
    groups = np.repeat(np.arange(20), 2)
    found = bootstrap_ratios(raw - kl, raw, groups=groups, n_boot=500, seed=4)
    assert found.estimate.shape == (3, 2)
    for index in np.ndindex(3, 2):
        single = bootstrap_ratio(raw - kl[index], raw, groups=groups, n_boot=500, seed=4)
        got = found.at(index)
        np.testing.assert_allclose(
            (got.estimate, got.low, got.high), (single.estimate, single.low, single.high), rtol=1e-12
        )
    with pytest.raises(AnalysisError, match="denominator"):
        bootstrap_ratios(kl, np.zeros(40))


def test_amplitudes_are_chosen_by_mean_kl() -> None:
    kl = np.array([[[3.0, 1.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert ranks.best_amplitudes(kl).tolist() == [1, 0]


def test_one_standard_error_rule_equals_brute_force() -> None:
    rng = np.random.default_rng(2)
    unit = rng.gamma(3.0, size=60)
    level = np.array([0.9, 0.5, 0.31, 0.30, 0.30])[:, None]
    loss = unit * level + 0.05 * rng.normal(size=(5, 60))
    best = loss[3]
    found = ranks.smallest_sufficient(loss, best, unit, n_boot=400, seed=1)
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=400)
    expected = None
    for k in range(5):
        gaps = [
            (loss[k] - best)[w].sum() / unit[w].sum() for w in (np.repeat(np.arange(60), c) for c in counts)
        ]
        gap = (loss[k] - best).sum() / unit.sum()
        np.testing.assert_allclose((found.gap[k], found.se[k]), (gap, np.std(gaps, ddof=1)), rtol=1e-9)
        if expected is None and gap <= np.std(gaps, ddof=1):
            expected = k
    assert found.index == expected
    assert found.index in (2, 3)


def test_rounding_counts_as_nothing_and_a_real_gap_does_not() -> None:
    unit = np.ones(30)
    loss = np.stack([unit * 0.5, unit * (0.3 + 1e-6), unit * 0.3])
    assert ranks.smallest_sufficient(loss, loss[2], unit).index == 2
    assert ranks.smallest_sufficient(loss, loss[2], unit, floor=1e-5).index == 1
    assert ranks.smallest_sufficient(loss[:1], loss[2], unit, floor=1e-5).index is None


def test_chance_of_stopping_at_equal_ranks() -> None:
    """Where all ranks do alike, the smallest is taken in most samples (one SE: 84 % of a normal law)."""
    rng = np.random.default_rng(0)
    firsts = []
    for _ in range(200):
        loss = rng.normal(size=(2, 50))
        firsts.append(ranks.smallest_sufficient(loss, loss[1], np.ones(50), n_boot=200).index == 0)
    # Binomial sd of 200 draws at 0.84 is 0.026.
    assert 0.84 - 0.09 < np.mean(firsts) < 0.84 + 0.09


@pytest.mark.parametrize("curve", [lambda a: 0.3 * a**2, lambda a: np.log1p(a**2), lambda a: a**2 / (1 + a)])
def test_equal_kl_is_the_root_of_the_curve(curve: Any) -> None:
    alphas = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    for target in (0.01, 0.1, 0.7):
        expected = optimize.brentq(lambda a, t=target: curve(a) - t, 0, 4)
        found = ranks.equal_kl_amplitude(alphas, curve(alphas), target)
        assert found is not None
        # Interpolation between seven points.
        assert abs(found - expected) < 0.03 * expected + 1e-3


def test_equal_kl_of_a_curve_that_dips_is_its_first_crossing() -> None:
    alphas, kl = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.2, 0.15, 0.5, 0.4])
    found = ranks.equal_kl_amplitude(alphas, kl, 0.2)
    assert found == pytest.approx(1.0)
    between = ranks.equal_kl_amplitude(alphas, kl, 0.3)
    assert between is not None
    assert 2.0 < between < 3.0
    assert ranks.equal_kl_amplitude(alphas, kl, 0.6) is None


def test_equal_kl_at_a_point_of_the_grid_is_that_point() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        alphas, kl = np.sort(rng.uniform(0.01, 2, 5)), np.sort(rng.uniform(0, 1, 5)) ** 2
        for alpha, target in zip(alphas, kl, strict=True):
            # The root finder's tolerance on a curve of slope √KL.
            assert ranks.equal_kl_amplitude(alphas, kl, float(target)) == pytest.approx(alpha, rel=1e-6)


def test_equal_kl_refuses_what_is_no_curve() -> None:
    for alphas, target in ((np.array([-1.0, 1.0]), 0.1), (np.array([1.0, 2.0]), 0.0)):
        with pytest.raises(AnalysisError, match="positive"):
            ranks.equal_kl_amplitude(alphas, np.array([0.1, 0.2]), target)


def test_the_method_page_s_code_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "docs/methods/ranks.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], page.name, "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("4 directions hold 99 %")
    assert "above random signs 4" in said
    # √0.9 on a curve 0.4 α²: 1.5.
    assert "α 1.5" in said
