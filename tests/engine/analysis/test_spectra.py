from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.errors import AnalysisError
from engine.stats.spectra import random_edge, random_values, uneven_edge

SHAPES = [(128, 320), (96, 96), (400, 60)]


def drawn(m: int, n: int, seed: int, norm: float = 3.0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(m, n))
    return np.linalg.svd(x * norm / np.linalg.norm(x), compute_uv=False)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_random_matrices_have_the_expected_singular_values(m: int, n: int) -> None:
    expected = random_values(m, n, 3.0)
    measured = np.mean([drawn(m, n, seed) for seed in range(40)], axis=0)
    # The law is that of infinite matrices: at these sizes its largest values are off by O(n^(-2/3)) of them.
    assert np.abs(measured - expected).max() < 0.01 * expected[0]
    assert np.sqrt((expected**2).sum()) == pytest.approx(3.0, rel=1e-3)  # quantiles of the law, not its sum
    assert (np.diff(expected) < 0).all()


def squares(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (matrix**2).sum(axis=1), (matrix**2).sum(axis=0)


def stand_out(matrix: np.ndarray) -> int:
    return int((np.linalg.svd(matrix, compute_uv=False) > uneven_edge(*squares(matrix))).sum())


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_with_even_rows_and_columns_the_edge_is_that_of_gaussian_entries(m: int, n: int) -> None:
    even = uneven_edge(np.full(m, 1 / m), np.full(n, 1 / n))
    assert even == pytest.approx(random_edge(m, n, 1.0, 0.99), rel=1e-6)


@pytest.mark.parametrize(("sd", "columns"), [(0.3, 0.0), (0.5, 0.5), (1.0, 0.2)])
def test_the_edge_of_uneven_rows_is_where_large_matrices_end(sd: float, columns: float) -> None:
    """Against the largest singular values of drawn ones, whose spreads are known."""
    rng = np.random.default_rng(0)
    rows, across = np.exp(sd * rng.uniform(-1, 1, 600)), np.exp(columns * rng.uniform(-1, 1, 900))
    drawn = [np.linalg.norm(rng.normal(size=(600, 900)) * rows[:, None] * across, 2) for _ in range(3)]
    edge = uneven_edge(rows**2 * (across**2).sum(), across**2 * (rows**2).sum(), 0.95)
    # the 95 % quantile lies 1.7 standard deviations of Tracy-Widom above the mean: below 1 % of it here
    assert edge == pytest.approx(np.mean(drawn), rel=0.015)
    assert edge > np.mean(drawn)


def rounding(rng: np.random.Generator, sd: float) -> np.ndarray:
    """What bfloat16 leaves of weights with uneven rows."""
    weights = torch.from_numpy(rng.normal(size=(128, 256)) * rng.lognormal(0, sd, (128, 1)))
    return (weights - weights.bfloat16().double()).numpy()


@pytest.mark.parametrize("sd", [0.0, 0.1, 1.0])
def test_nothing_stands_out_of_noise_with_uneven_rows_or_of_rounding(sd: float) -> None:
    rng, even = np.random.default_rng(0), 0
    for _ in range(40):
        noise = rng.normal(size=(128, 256)) * rng.lognormal(0, sd, (128, 1)) * rng.lognormal(0, sd, 256)
        assert not stand_out(noise)
        assert not stand_out(rounding(rng, sd))
        even += np.linalg.norm(noise, 2) > random_edge(128, 256, float(np.linalg.norm(noise)), 0.99)
    assert (even > 20) == (sd > 0)  # the edge of even entries names most of them


def test_planted_directions_stand_out() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(128, 320)) / np.sqrt(128 * 320)
    left, right = (np.linalg.qr(rng.normal(size=(side, 3)))[0] for side in (128, 320))
    assert stand_out(noise + 0.4 * left @ right.T) == 3
    uneven = noise * rng.lognormal(0, 0.3, (128, 1))
    assert stand_out(uneven + 0.5 * left @ right.T) == 3
    assert uneven_edge(np.zeros(5), np.zeros(9)) == 0


def test_impossible_matrices_are_refused() -> None:
    with pytest.raises(AnalysisError, match="no such matrix"):
        random_values(0, 4, 1.0)
    with pytest.raises(AnalysisError, match=r"No quantile.*0\.95"):
        random_edge(4, 4, 1.0, level=0.5)
