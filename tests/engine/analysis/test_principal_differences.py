"""Principal differences against numpy's SVD, scikit-learn, closed forms and draws; nulls and plants."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from engine.errors import AnalysisError
from engine.principal_differences import numbers
from engine.principal_differences.numbers import Told, counted, flipped, principal


def planted(rng: np.random.Generator, n: int, d: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Noise with two directions of n random amounts; (rows, directions)."""
    axes = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    amounts = rng.normal(size=(n, 2)) * size
    return amounts @ axes + rng.normal(size=(n, d)), axes


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1]) + 0.5
    found, expected = principal(rows, True, 5), PCA(svd_solver="full").fit(rows)
    assert found.square == pytest.approx(
        expected.explained_variance_[: min(shape) - (shape[0] < shape[1])] * (shape[0] - 1) / shape[0]
    )
    assert np.abs((found.directions * expected.components_[:5]).sum(axis=1)) == pytest.approx(np.ones(5))
    assert found.shares[:5] == pytest.approx(expected.explained_variance_ratio_[:5])
    assert found.mean_share == pytest.approx(
        np.square(rows.mean(axis=0)).sum() / np.square(rows).sum(axis=1).mean()
    )


def test_uncentred_components_are_singular_vectors_on_the_side_of_the_mean() -> None:
    rows = np.random.default_rng(1).normal(size=(12, 30)) - 1.0
    found, (_, sigma, right) = principal(rows, False, 3), np.linalg.svd(rows)
    assert found.square == pytest.approx(sigma**2 / 12)
    assert np.abs((found.directions * right[:3]).sum(axis=1)) == pytest.approx(np.ones(3))
    assert (found.directions @ rows.mean(axis=0) >= 0).all()
    assert found.scores(rows) == pytest.approx(rows @ found.directions.T)


def test_differences_that_have_no_components_are_refused() -> None:
    for rows in (np.zeros((1, 3)), np.full((3, 3), np.nan)):
        with pytest.raises(AnalysisError, match="no components"):
            principal(rows, True, 2)


def test_signs_of_one_unit_and_of_one_coordinate_move_nothing() -> None:
    """A diagonal of signs is orthogonal: singular values stay. Centred, one unit of freedom is put back."""
    rows = np.random.default_rng(2).normal(size=(9, 6))
    bare, one = principal(rows, False, 4), np.zeros(9, dtype=int)
    assert flipped(rows, one, bare, 0, 5, 0) == pytest.approx(np.full(5, bare.square[0]), rel=1e-5)
    column, units = rows[:, :1], np.arange(9)
    found = principal(column, True, 1)
    assert flipped(column, units, found, 0, 5, 0) == pytest.approx(np.full(5, found.total * 9 / 8), rel=1e-5)


def test_signs_are_of_whole_units_in_every_coordinate() -> None:
    """Two prompts that change alike are one; independent signs would halve what they have in common."""
    rng = np.random.default_rng(3)
    half = rng.normal(size=(30, 40))
    twice, unit = np.repeat(half, 2, axis=0), np.repeat(np.arange(30), 2)
    by_unit = flipped(twice, unit, principal(twice, False, 2), 0, 40, 0)
    alone = flipped(half, np.arange(30), principal(half, False, 2), 0, 40, 0)
    assert by_unit == pytest.approx(alone, rel=1e-5)
    assert flipped(twice, np.arange(60), principal(twice, False, 2), 0, 40, 0).max() < by_unit.min()


def test_as_many_components_are_counted_as_were_planted() -> None:
    rng = np.random.default_rng(4)
    rows, axes = planted(rng, 60, 40, 6.0)
    noise = rng.normal(size=(60, 40)) * rng.lognormal(0, 0.7, (60, 1)) * rng.lognormal(0, 1, 40)
    unit = np.arange(60)
    places = [
        Told(one, unit, principal(one, True, 6), 0.0) for one in (noise, rows, np.zeros_like(rows) + noise)
    ]
    told, limits = counted(places, 99, 0)
    assert told == [0, 2, 0]
    assert places[1].found.square[2] <= limits[1] < places[1].found.square[1]
    inside = np.linalg.svd(places[1].found.directions[:2] @ axes.T)[1]
    assert inside.min() > 0.95
    loud = [Told(rows, unit, principal(rows, True, 6), 1e3)]
    assert counted(loud, 99, 0)[0] == [0], "no more than rounding"


def test_a_first_component_does_not_hide_the_next() -> None:
    """Of sizes 100 : 1: what the first takes is not counted as noise."""
    rng = np.random.default_rng(5)
    rows, axes = planted(rng, 80, 40, 0.0)
    rows += rng.normal(size=(80, 2)) * np.array([100.0, 4.0]) @ axes
    found = principal(rows, True, 4)
    assert counted([Told(rows, np.arange(80), found, 0.0)], 99, 0)[0] == [2]
    assert flipped(rows, np.arange(80), found, 0, 99, 0).min() > found.square[1], "without deflation it would"


def test_held_out_shares_are_of_the_trains_directions_and_centre() -> None:
    rng = np.random.default_rng(6)
    rows, _ = planted(rng, 60, 20, 3.0)
    found, other = principal(rows[:40], True, 3), rows[40:]
    band = numbers.held_out(found, other, np.arange(20), 200, 0)
    left = other - rows[:40].mean(axis=0)
    assert band.estimate == pytest.approx(
        np.square(left @ found.directions.T).sum(axis=0) / np.square(left).sum()
    )
    assert (band.low < band.estimate).all()
    assert (band.estimate < band.high).all()


def test_what_is_planted_is_found_again_and_noise_is_not() -> None:
    rng = np.random.default_rng(7)
    rows, _ = planted(rng, 60, 40, 5.0)
    again = np.median(numbers.stability(rows, np.arange(60), principal(rows, True, 4), 20, 0), axis=0)
    assert again[:2].min() > 0.9
    assert again[2:].max() < 0.8


def test_unrelated_directions_reach_what_is_said() -> None:
    """Of independent tokens, by draws: random directions, and signs of the coordinates of an uneven one."""
    rng = np.random.default_rng(8)
    tokens = rng.normal(size=(300, 256)) * rng.lognormal(0, 0.3, (300, 1))
    drawn = rng.normal(size=(4000, 256))
    even = np.abs(drawn / np.linalg.norm(drawn, axis=1, keepdims=True) @ tokens.T).max(axis=1)
    uneven = np.where(np.arange(256) < 64, 1.0, 0.01)
    uneven /= np.linalg.norm(uneven)
    signs = np.abs((rng.choice((-1.0, 1.0), size=(4000, 256)) * uneven) @ tokens.T).max(axis=1)
    expected = max(np.quantile(even, 0.95), np.quantile(signs, 0.95))
    assert numbers.reach(tokens, uneven) == pytest.approx(expected, rel=0.04)


def test_a_direction_inside_a_side_has_cosine_1_and_an_unrelated_one_is_not_told() -> None:
    rng = np.random.default_rng(9)
    basis = np.linalg.qr(rng.normal(size=(60, 4)))[0]
    inside = numbers.written(basis @ rng.normal(size=4), basis)
    assert inside.cosine == pytest.approx(1.0)
    assert inside.p < 1e-6
    drawn = [numbers.written(rng.normal(size=60), basis) for _ in range(400)]
    low = np.mean([one.p < 0.05 for one in drawn])
    assert 0.01 < low < 0.08
    assert np.mean([one.cosine > one.high for one in drawn]) == pytest.approx(low, abs=0.02)
    assert numbers.written(basis[:, 0], np.eye(60)).p == 1.0
