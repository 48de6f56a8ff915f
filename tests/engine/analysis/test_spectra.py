from __future__ import annotations

import numpy as np
import pytest

from engine.analysis.spectra import above_edge, random_edge, random_values
from engine.errors import AnalysisError

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


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_nothing_stands_out_of_a_random_matrix_at_the_stated_rate(m: int, n: int) -> None:
    found = sum(above_edge(drawn(m, n, seed), m, n) > 0 for seed in range(200))
    assert found <= 20  # 5 % of 200 and 3 standard errors of the binomial (9.2)


def test_planted_directions_stand_out() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(128, 320)) / np.sqrt(128 * 320)
    left, right = (np.linalg.qr(rng.normal(size=(side, 3)))[0] for side in (128, 320))
    values = np.linalg.svd(noise + 0.4 * left @ right.T, compute_uv=False)
    assert above_edge(values, 128, 320) == 3
    assert above_edge(np.zeros(5), 5, 9) == 0


def test_impossible_matrices_are_refused() -> None:
    with pytest.raises(AnalysisError, match="no such matrix"):
        random_values(0, 4, 1.0)
    with pytest.raises(AnalysisError, match=r"No quantile.*0\.95"):
        random_edge(4, 4, 1.0, level=0.5)
