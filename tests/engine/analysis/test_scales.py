"""The null that keeps the coordinates' scales: moments, rates where nothing is shared, words of old runs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from subspace_runs import result

from benchmarks.calibration.effects import change
from benchmarks.calibration.scales import UNEVEN, Coordinates, basis
from engine.geometry import separation as sep
from engine.geometry.language_energy import language_energy
from engine.geometry.layers import resemblance_p
from engine.residual_updates.numbers import residual_updates, update_norms
from engine.stats.scales import Scales, shares_of, spread
from engine.stats.uncertainty import energy_p_values, random_subspace_moments
from engine.subspaces.numbers import conclude, sweep
from engine.subspaces.tables import BESIDE, scores_of

Array = NDArray[np.float64]
ROGUE = Coordinates(rogue=4)


def flipped(columns: Array, z: Array) -> Array:
    """Energy of every sign flip of z's coordinates in C Cᵀ/‖C‖², (2^d,)."""
    scaled = columns / np.linalg.norm(columns)
    signs = np.array(list(product((-1.0, 1.0), repeat=len(z))))
    return np.array([((scaled.T @ (one[:, None] * z)) ** 2).sum() for one in signs])


@pytest.mark.parametrize("k", [1, 3])
def test_the_mean_is_that_of_all_sign_flips_and_for_one_direction_the_variance_too(k: int) -> None:
    rng = np.random.default_rng(k)
    scale = np.exp(rng.normal(size=9))
    columns, z = scale[:, None] * rng.normal(size=(9, 4)), basis(rng, scale, k)
    every, null = flipped(columns, z), Scales.of(columns).null(shares_of(z)[:, -1])
    assert float(null.mean) == pytest.approx(every.mean(), rel=1e-12)
    if k == 1:
        assert float(null.variance) == pytest.approx(every.var(), rel=1e-9)


def test_the_variance_is_that_of_the_flips_on_average_over_subspaces_of_these_scales() -> None:
    rng = np.random.default_rng(0)
    scale = np.exp(0.7 * rng.normal(size=10))
    columns = scale[:, None] * rng.normal(size=(10, 5))
    exact, given = [], []
    for _ in range(200):
        z = basis(rng, scale, 3)
        projector, scales = z @ z.T, Scales.of(columns)
        exact.append(2 * float((scales.squares * projector**2).sum()))
        given.append(float(scales.null(shares_of(z)[:, -1]).variance))
    # 200 subspaces whose exact variances have a coefficient of variation of about 0.3
    assert np.mean(given) == pytest.approx(np.mean(exact), rel=0.08)


def test_expected_squares_add_up_as_those_of_a_projector_do() -> None:
    rng = np.random.default_rng(1)
    for scale in (np.ones(40), np.exp(rng.normal(size=40)), np.r_[12.0 * np.ones(2), np.ones(38)]):
        shares = shares_of(basis(rng, scale, 6))
        a = spread(shares)
        rows = a * (a.sum(axis=0) - a)
        np.testing.assert_allclose(rows.sum(axis=0), (shares * (1 - shares)).sum(axis=0), rtol=1e-9)
        np.testing.assert_allclose(rows[:, 1:], (shares * (1 - shares))[:, 1:], rtol=0.05)
    even = np.full((40, 1), 6 / 40)
    np.testing.assert_allclose(spread(even) ** 2, 6 / 40 * (1 - 6 / 40) / 39, rtol=1e-12)


def test_axes_differ_by_nothing_but_scale_and_no_energy_is_no_finding() -> None:
    columns = np.diag(np.arange(1.0, 7.0))
    null = Scales.of(columns).null(shares_of(np.eye(6)[:, 3:]))
    assert null.p(np.array([0.2, 0.6, 0.9])).tolist() == [1, 1, 1]
    assert null.p_low(np.array([0.2, 0.6, 0.9])).tolist() == [1, 1, 1]
    assert np.isnan(null.p(np.array([np.nan, 0.6, 0.9]))[0])
    empty = Scales.of(np.zeros((6, 2))).null(shares_of(np.eye(6)[:, :1]))
    assert empty.p(np.zeros(1)).tolist() == [1]


@pytest.mark.parametrize("name", list(UNEVEN))
def test_what_shares_only_scales_is_told_from_chance_in_one_case_of_twenty(name: str) -> None:
    coordinates, d, k, repeats = UNEVEN[name], 48, 4, 600
    both, haar, less = [], [], []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        scale = coordinates.scale(rng, d)
        columns = scale[:, None] * coordinates.draw(rng, d, 8)
        z, unit = basis(rng, scale, k, coordinates), columns / np.linalg.norm(columns)
        fraction = float(((unit.T @ z) ** 2).sum())
        null = Scales.of(columns).null(shares_of(z)[:, -1])
        both.append(float(null.p(np.array(fraction))))
        less.append(float(null.p_low(np.array(fraction))))
        mean, variance = random_subspace_moments(d, k, 1.0, float(((unit.T @ unit) ** 2).sum()))
        haar.append(float(energy_p_values(np.array(fraction), np.array(mean), np.array(variance))))
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert np.mean(np.array(both) < 0.05) <= most
    assert np.mean(np.array(less) < 0.05) <= most
    if not coordinates.heavy:
        assert np.mean(np.array(haar) < 0.05) > 0.5  # uniformly random subspaces know no scales


def test_what_lies_inside_is_found_whatever_the_scales() -> None:
    rng = np.random.default_rng(0)
    scale = ROGUE.scale(rng, 200)
    z = basis(rng, scale, 8)
    columns = z @ rng.normal(size=(8, 4)) + 0.02 * scale[:, None] * rng.normal(size=(200, 4))
    unit = columns / np.linalg.norm(columns)
    fraction = np.array(((unit.T @ z) ** 2).sum())
    assert float(Scales.of(columns).null(shares_of(z)[:, -1]).p(fraction)) < 1e-6


def test_signed_ratios_are_those_of_sign_flips() -> None:
    rng = np.random.default_rng(3)
    problems = sep.Problems.of(rng.normal(size=(5, 6)), rng.normal(size=(5, 6)))
    z = basis(rng, np.ones(6), 2)
    signs = np.array(list(product((-1.0, 1.0), repeat=6)))
    every = {round(float(sep.separation_ratios(problems, {2: s[:, None] * z})[1][0]), 5) for s in signs}
    drawn = sep.signed_ratios(problems, z, draws=400, seed=0)
    assert {round(float(one), 5) for one in drawn} <= every | {one + 1e-5 for one in every} | {
        one - 1e-5 for one in every
    }
    assert len(np.unique(drawn.round(4))) > 25  # of 32, as −E does what E does


def test_old_runs_open_and_say_that_they_know_one_null() -> None:
    stored = result()
    tables = dict(stored.tables)
    now = scores_of(stored.summary, tables, "tuned", 4)
    assert now.scaled
    tables["table"] = tables["table"].drop(*BESIDE)
    old = scores_of(stored.summary, tables, "tuned", 4)
    assert not old.scaled
    np.testing.assert_array_equal(old.tables["p_act"], now.tables["p_act"])
    assert (old.tables["holm_act"] <= now.tables["holm_act"]).all(where=np.isfinite(old.tables["holm_act"]))
    said = conclude(old)
    assert said.winner == ""
    assert "uniformly random subspaces" in said.text
    assert "uniformly random subspaces" not in conclude(now).text


def test_holm_is_of_the_larger_p_of_both_nulls() -> None:
    scores = sweep(change(False, ROGUE)(np.random.default_rng(0)), k=4, broad=6)
    real = np.array([one.axis_kind != "ceiling" for one in scores.candidates])[:, None]
    tested = real & np.isin(scores.layers, scores.averaged)[None, :]
    larger = np.maximum(scores.tables["p_combined"], scores.tables["p_scales_combined"])
    smallest = np.nanmin(np.where(tested, larger, np.nan))
    count = int(np.isfinite(larger[tested]).sum())
    assert np.nanmin(scores.tables["holm_combined"]) == pytest.approx(min(1.0, smallest * count))
    haar = np.where(tested, scores.tables["p_combined"], np.nan)
    assert np.nanmin(haar) * count < 0.05, "against uniformly random subspaces alone something stands out"
    assert not (scores.tables["holm_combined"] < 0.05).any()


def test_energy_resemblance_and_updates_are_told_by_the_larger_p() -> None:
    rng = np.random.default_rng(5)
    scale = ROGUE.scale(rng, 64)
    z, other = basis(rng, scale, 6), basis(rng, scale, 6)
    one = rng.normal(size=(20, 64)) * scale
    shift = rng.normal(size=(20, 64)) * scale
    energy = language_energy(sep.Problems.of(one, one + shift), {6: z}, n_boot=2)
    assert energy.p[0] < 1e-3 < energy.more[0]
    assert energy.more[0] == max(energy.p[0], energy.p_scales[0])
    similarity = np.array([((z.T @ other) ** 2).sum() / 6])
    plain, kept = resemblance_p(shares_of(z)[:, -1], shares_of(other)[:, -1:], similarity)
    assert plain[0] < 1e-6
    assert kept[0] > 0.01
    deltas = [rng.normal(size=(40, 64)) * scale for _ in range(3)]
    norms = update_norms(deltas, z, [6])
    assert norms.scales is not None
    rows = deltas[0] / np.linalg.norm(deltas[0], axis=1, keepdims=True)
    exact = Scales.of(rows.T).null(shares_of(z)[:, -1])
    np.testing.assert_allclose(norms.scales[:, 0, 0], [exact.mean, exact.variance, exact.shape], rtol=1e-4)
    found = residual_updates(norms, 6, n_boot=50)
    assert (found.p_random > 0.05).all()
    alone = update_norms(deltas, {6: z}, [6])
    assert alone.scales is not None
    np.testing.assert_allclose(alone.scales, norms.scales, rtol=1e-6)
