"""CKA values against feature-space and matrix formulas written out anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_type_hints

import numpy as np
import pytest
from jaxtyping import jaxtyped

from engine.errors import AnalysisError
from engine.similarity import cka


def features(seed: int, n: int = 40, d1: int = 9, d2: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) + 3.0
    return x, x[:, :d2] @ rng.normal(size=(d2, d2)) + rng.normal(size=(n, d2))


def feature_space_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, eq. with cross-covariances d₁ × d₂: no Gram matrix."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross, own_x, own_y = y.T @ x, x.T @ x, y.T @ y
    return float((cross**2).sum() / np.sqrt((own_x**2).sum() * (own_y**2).sum()))


def song_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, on explicit matrices."""
    k, m, n = k.copy(), m.copy(), len(k)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def song_cka(x: np.ndarray, y: np.ndarray) -> float:
    k, m = x @ x.T, y @ y.T
    return song_hsic(k, m) / np.sqrt(song_hsic(k, k) * song_hsic(m, m))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "d1", "d2"), [(40, 9, 6), (12, 50, 8)])
def test_both_estimators_equal_their_definitions(seed: int, n: int, d1: int, d2: int) -> None:
    x, y = features(seed, n, d1, d2)
    # 1e-10: float64 sums of a few thousand products
    assert cka.linear_cka(x, y) == pytest.approx(feature_space_cka(x, y), rel=1e-10)
    assert cka.linear_cka(x, y, debiased=True) == pytest.approx(song_cka(x, y), rel=1e-10, abs=1e-12)


def test_debiased_value_does_not_need_centring_even_in_float32() -> None:
    x, y = features(5, n=60, d1=30, d2=6)
    x += 40.0  # a mean far larger than the spread, as real residual streams have
    raw = song_hsic(x @ x.T, y @ y.T)
    exact = cka.hsic(cka.gram(x), cka.gram(y), debiased=True)
    # float64 with entries ~5e4 before centring against ~30 after: 1e-16·(5e4)² relative to 900
    assert exact == pytest.approx(raw, rel=1e-7)
    stored = cka.hsic(cka.gram(x).astype(np.float32), cka.gram(y).astype(np.float32), debiased=True)
    assert stored == pytest.approx(raw, rel=2e-6)  # float32 storage: 6e-8 per entry, 3600 entries
    # An uncentred Gram handed over by mistake gives the same, because it is centred on the way in.
    assert cka.hsic(x @ x.T, y @ y.T, debiased=True) == pytest.approx(raw, rel=1e-7)


def test_cka_is_one_for_rotated_scaled_copies_and_symmetric() -> None:
    x, y = features(1)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))[0]
    for debiased in (False, True):
        assert cka.linear_cka(x, -2.5 * x @ rotation + 7, debiased) == pytest.approx(1.0, abs=1e-12)
        assert cka.linear_cka(x, y, debiased) == pytest.approx(cka.linear_cka(y, x, debiased), abs=1e-14)


def test_wide_independent_data_shows_why_both_estimators_are_needed() -> None:
    rng = np.random.default_rng(3)
    biased, unbiased = [], []
    for _ in range(40):
        x, y = rng.normal(size=(30, 300)), rng.normal(size=(30, 300))
        biased.append(cka.linear_cka(x, y))
        unbiased.append(cka.linear_cka(x, y, debiased=True))
    assert min(biased) > 0.85
    # mean of 40 values of standard deviation 0.05: four standard errors
    assert abs(np.mean(unbiased)) < 4 * np.std(unbiased) / np.sqrt(40)
    assert min(unbiased) < 0  # not clipped


@pytest.mark.parametrize("constant", [0.0, 5.1, -3e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_variance_is_nan_with_a_reason(constant: float, dtype: type) -> None:
    x, y = features(0)
    flat: np.ndarray = np.full((40, 7), constant, dtype=dtype)
    for debiased in (False, True):
        value = cka.linear_cka(flat, y, debiased)
        assert np.isnan(value)
        assert value.reason is not None
        assert "first side is the same for every prompt" in value.reason
        other = cka.linear_cka(x, flat, debiased)
        assert other.reason is not None
        assert "second side" in other.reason
    assert cka.linear_cka(x, y).reason is None


def test_a_self_term_below_noise_is_nan_with_a_reason() -> None:
    # orthogonal one-hot prompts: Song's self term of I is 1ᵀ… = 0 off the diagonal, hence not positive
    eye, y = np.eye(12), features(0, n=12)[1]
    value = cka.linear_cka(eye, y, debiased=True)
    assert np.isnan(value)
    assert "no more structure than independent noise" in (value.reason or "")


def test_subset_of_a_stored_gram_is_the_gram_of_the_subset() -> None:
    x, y = features(2)
    mask = np.arange(40) % 3 == 0
    for index in (mask, np.flatnonzero(mask)):
        sub = cka.sub_gram(np.stack([cka.gram(x), cka.gram(y)]), index)
        np.testing.assert_allclose(sub[0], cka.gram(x[mask]), atol=1e-11)
        np.testing.assert_allclose(sub[1], cka.gram(y[mask]), atol=1e-11)


def test_a_subset_of_equal_prompts_leaves_zero_not_rounding() -> None:
    """Which sign rounding has is chance: a positive trace would give a similarity of noise."""
    rounding = []
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(40, 9)).astype(np.float32)
        x[:15] = x[0]
        whole = cka.gram(x).astype(np.float32)
        rounding.append(np.trace(cka.centre(whole[:15, :15])))
        for got in (cka.sub_gram(whole, np.arange(15)), cka.sub_gram(whole[None], np.arange(15))[0]):
            assert not got.any()
        x[0] *= 1.01  # a real difference of a hundredth stays (float32 resolves the square of it)
        narrow = cka.sub_gram(cka.gram(x).astype(np.float32), np.arange(15))
        truth = cka.gram(x[:15])
        assert np.trace(narrow) == pytest.approx(np.trace(truth), rel=0.05)
    assert np.any(np.array(rounding) != 0)


def test_cross_layer_equals_pairwise_values_and_the_curve_is_its_diagonal() -> None:
    xs = [features(s, n=50, d1=20)[0] for s in range(4)]
    ys = [features(s, n=50)[1] for s in range(3)] + [np.full((50, 3), 2.0)]
    a, b = (np.stack([cka.gram(v).astype(np.float32) for v in side]) for side in (xs, ys))
    for debiased in (False, True):
        table = cka.cross_layer_cka(a, b, debiased)
        expected = [[cka.linear_cka(x, y, debiased) for y in ys] for x in xs]
        np.testing.assert_allclose(table, expected, atol=3e-6)  # float32 Grams
        curve = cka.cka_curve(a, b, debiased)
        np.testing.assert_allclose(curve, np.diagonal(table), atol=3e-6)
        assert [v.reason is None for v in curve] == [True, True, True, False]
    np.testing.assert_allclose(cka.cross_layer_cka(a, a), cka.cross_layer_cka(a, a.copy()), atol=1e-6)


def test_planted_change_shows_at_its_layer_only() -> None:
    rng = np.random.default_rng(0)
    base = [rng.normal(size=(80, 16)) for _ in range(5)]
    tuned = [v.copy() for v in base]
    for layer in (3, 4):
        tuned[layer][:, 0] += 4 * rng.normal(size=80)
    curve = cka.cka_curve([cka.gram(v) for v in base], [cka.gram(v) for v in tuned], debiased=True)
    np.testing.assert_allclose(curve[:3], 1.0, atol=1e-12)
    assert max(curve[3:]) < 0.9


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cka.gram(np.ones((1, 4))), "features of several prompts"),
        (lambda: cka.gram(np.array([[1.0], [np.nan]])), "not all finite"),
        (lambda: cka.linear_cka(np.ones((5, 2)), np.ones((6, 2))), "the same prompts"),
        (lambda: cka.cka_from_grams(np.eye(3), np.eye(3), True), "n ≥ 4"),
        (lambda: cka.cka_from_grams(np.eye(5), np.eye(6)), "(5, 5) and (6, 6)"),
        (lambda: cka.cka_curve([np.eye(5)], []), "Use cross_layer_cka"),
        (lambda: cka.sub_gram(np.eye(5), np.array([1])), "at least 2 prompts"),
    ],
)
def test_bad_input_is_refused_with_its_reason(call: object, says: str) -> None:
    with pytest.raises(AnalysisError, match=r".") as caught:
        call()  # type: ignore[operator]
    assert says in str(caught.value)


def test_declared_shapes_hold() -> None:
    x, y = features(0)
    k, m = cka.gram(x), cka.gram(y)
    cases: tuple[tuple[Callable[..., object], dict[str, np.ndarray]], ...] = (
        (cka.gram, {"x": x}),
        (cka.centre, {"k": np.stack([k] * 3)}),
        (cka.sub_gram, {"k": k, "index": np.arange(7)}),
        (cka.hsic, {"a": k, "b": m}),
    )
    for function, args in cases:
        hints = get_type_hints(function)
        with jaxtyped("context"):
            for name, value in args.items():
                assert isinstance(value, hints[name])
            assert isinstance(function(**args), hints["return"])
        with jaxtyped("context"):
            assert not isinstance(np.ones(3), hints[next(iter(args))])
