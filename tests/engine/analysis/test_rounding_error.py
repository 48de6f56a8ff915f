"""What rounding alone does: against simulated rounding, with a null, and with real effects above it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.errors import AnalysisError
from engine.similarity.cka import cka_from_grams, gram
from engine.stats.rounding_error import cka_bound, cka_error, rounding_sd, row_error, sum_error, u_centred

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(x).to(DTYPES[dtype]).double().numpy()


def stream(n: int = 60, d: int = 96, seed: int = 0) -> np.ndarray:
    """Features as a stream has them: a large mean, a falling spectrum, a few coordinates of great size."""
    rng = np.random.default_rng(seed)
    scales = 1.0 / np.sqrt(1 + np.arange(d))
    x = rng.normal(size=(n, d)) * scales @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    x[:, :3] *= 30
    return x + 2 * rng.normal(size=d)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_rounding_error_of_values_is_what_rounding_does(dtype: str) -> None:
    x = np.random.default_rng(1).normal(size=(400, 500))
    kept = rounded(x, dtype)
    found = np.sqrt(((kept - x) ** 2).mean() / (rounding_sd(kept, dtype) ** 2).mean())
    assert found == pytest.approx(1, abs=0.01)  # 200,000 values: a standard error of 0.2 %
    sd = rounding_sd(np.array([1.0, 1.99, 2.0, -0.75, 0.0]), "bfloat16") * np.sqrt(12)
    np.testing.assert_allclose(sd, [2**-7, 2**-7, 2**-6, 2**-8, 0.0], rtol=1e-12)


def test_rows_have_the_relative_error_of_their_dtype() -> None:
    x = stream()
    found = row_error(rounded(x, "bfloat16"), rounding_sd(x, "bfloat16"))
    measured = np.sqrt((np.linalg.norm(rounded(x, "bfloat16") - x, axis=1) ** 2 / (x**2).sum(axis=1)).mean())
    assert found == pytest.approx(measured, rel=0.05)
    assert 1e-3 < found < 2**-8  # below half a unit in the last place
    assert np.isnan(row_error(np.zeros((4, 3)), np.zeros((4, 3))))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_minus_cka_is_what_rounding_makes_of_it(debiased: bool, seed: int) -> None:
    x = stream(seed=seed)
    k = gram(x)
    sims = []
    for draw in range(30):
        moved = x * (1 + 2**-7 * np.random.default_rng(draw).uniform(-1, 1, x.shape))  # others to round
        one, two = gram(moved), gram(rounded(moved, "bfloat16"))
        sims.append(1 - cka_from_grams(one, two, debiased))
    expected = cka_error(x, rounding_sd(x, "bfloat16"), debiased)
    # to 10 %: the mantissas of three coordinates, which hold most of what varies, are not spread evenly
    assert np.mean(sims) == pytest.approx(expected, rel=0.1)
    assert max(sims) < 2 * expected  # the margin that titles leave
    assert cka_from_grams(k, gram(x.copy()), debiased) == pytest.approx(1, abs=1e-12)


def test_errors_of_both_sides_add_up() -> None:
    x = stream(seed=3)
    sd = rounding_sd(x, "bfloat16")
    rng = np.random.default_rng(0)
    both = [
        1 - cka_from_grams(*(gram(x + sd * np.sqrt(3) * rng.uniform(-1, 1, x.shape)) for _ in range(2)), True)
        for _ in range(40)
    ]
    assert np.mean(both) == pytest.approx(2 * cka_error(x, sd, True), rel=0.15)


def test_errors_with_the_features_own_covariance_do_what_the_bound_says() -> None:
    x = stream(n=200, seed=4)
    centred, rng = x - x.mean(axis=0), np.random.default_rng(5)
    size = 0.02
    sims = []
    for _ in range(20):
        e = rng.normal(size=(200, 200)) @ centred / np.sqrt(200)  # covariance of the features
        e *= size * np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt((e**2).sum(axis=1).mean())
        sims.append(1 - cka_from_grams(gram(x), gram(x + e), True))
    bound = cka_bound(x, size)
    assert 0.5 * bound < np.mean(sims) < 1.2 * bound
    alone = size * np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1]) * np.ones_like(x)
    assert cka_error(x, alone, True) < bound  # errors of each entry by itself do less


def test_nothing_varies_nothing_is_said() -> None:
    assert np.isnan(cka_error(np.ones((6, 3)), np.ones((6, 3))))
    assert np.isnan(cka_bound(np.ones((6, 3)), 0.1))
    assert cka_error(stream(), np.zeros((60, 96))) == 0
    with pytest.raises(AnalysisError, match="do not match"):
        cka_error(np.ones((6, 3)), np.ones((6, 4)))
    with pytest.raises(AnalysisError, match="dtype is not known"):
        rounding_sd(np.ones(3), "int8")


def test_u_centred_grams_give_the_debiased_estimator() -> None:
    k, other = gram(stream(seed=1)), gram(stream(seed=2))
    a, b = u_centred(k), u_centred(other)
    found = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert found == pytest.approx(cka_from_grams(k, other, True), rel=1e-9)


@pytest.mark.parametrize("step", [1e-3, 0.03, 1.0])
def test_the_share_of_an_update_that_is_rounding(step: float) -> None:
    rng = np.random.default_rng(6)
    before = 10 * rng.normal(size=(50, 64))
    after = before + step * rng.normal(size=(50, 64))
    kept = [rounded(state, "bfloat16") for state in (before, after)]
    delta = kept[1] - kept[0]
    apart = np.linalg.norm(delta - (after - before)) / np.linalg.norm(delta)
    found = sum_error(delta, kept, "bfloat16")
    if (
        step > 0.01
    ):  # coarser than a unit in the last place, so that the errors of both states are independent
        assert found == pytest.approx(min(apart, 1.0), rel=0.1)
    else:
        assert found > 0.5  # the true update is 0.1 % of what rounding leaves: mostly it is lost
    parts = [0.5 * (after - before), 0.5 * (after - before)]
    kept_parts = [rounded(part, "bfloat16") for part in parts]
    assert sum_error(sum(kept_parts), kept_parts, "bfloat16") < 2**-8  # what adds up loses nothing
    assert sum_error(np.zeros((2, 2)), kept, "bfloat16") == 0
