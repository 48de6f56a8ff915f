"""The bridge: left-out errors against refits, planted and unrelated coordinates, the wording's rule."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from engine.bridge.numbers import (
    Bridge,
    describe,
    fit_bridge,
    orthogonality,
    procrustes_r2,
    profile,
    random_spectrum,
)
from engine.errors import AnalysisError


def pair(n: int, k: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates, their image under a random linear map plus noise, and the map."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(k, k)) / np.sqrt(k)
    x = rng.normal(size=(n, k)) + 3.0
    return x, x @ w + noise * rng.normal(size=(n, k)) - 1.0, w


@pytest.mark.parametrize(("n", "k"), [(30, 6), (12, 20), (9, 8)])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 300.0])
def test_left_out_r2_equals_refitting_n_times(n: int, k: int, alpha: float) -> None:
    x, y, _ = pair(n, k, 0.5)
    squared = 0.0
    for i in range(n):
        rest = np.arange(n) != i
        squared += ((Ridge(alpha=alpha).fit(x[rest], y[rest]).predict(x[i : i + 1])[0] - y[i]) ** 2).sum()
    wanted = 1 - squared / ((y - y.mean(axis=0)) ** 2).sum()
    fitted = fit_bridge(x, y, alphas=[alpha], draws=1)
    # the refits solve normal equations: 1e-8 of the sums
    assert fitted.r2_loo == pytest.approx(wanted, abs=1e-7)
    whole = Ridge(alpha=alpha).fit(x, y)
    np.testing.assert_allclose(fitted.w, whole.coef_.T, atol=1e-8)
    assert fitted.r2_train == pytest.approx(
        whole.score(x, y) if k == 1 else _r2(y, whole.predict(x)), abs=1e-9
    )


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("n", "k"), [(10, 25), (10, 10), (8, 7), (30, 6)])
def test_minimum_norm_equals_refitting_n_times(n: int, k: int, center: bool) -> None:
    """n ≤ k interpolates; n = k + 1 is exactly determined; n > k is least squares."""
    x, y, _ = pair(n, k, 0.5, seed=2)
    squared = 0.0
    for i in range(n):
        rest = np.arange(n) != i
        mx, my = (x[rest].mean(axis=0), y[rest].mean(axis=0)) if center else (0.0, 0.0)
        w = np.linalg.pinv(x[rest] - mx) @ (y[rest] - my)
        squared += ((y[i] - my - (x[i] - mx) @ w) ** 2).sum()
    fitted = fit_bridge(x, y, method="minimum_norm", center=center, draws=1)
    assert fitted.r2_loo == pytest.approx(1 - squared / ((y - y.mean(axis=0)) ** 2).sum(), rel=1e-6)
    assert fitted.underdetermined == (n <= k)
    if n <= k:
        assert fitted.r2_train == pytest.approx(1.0, abs=1e-9)


def test_ridge_tends_to_minimum_norm() -> None:
    x, y, _ = pair(12, 30, 0.3, seed=4)
    almost = fit_bridge(x, y, alphas=[1e-7], draws=1)
    exact = fit_bridge(x, y, method="minimum_norm", draws=1)
    assert almost.r2_loo == pytest.approx(exact.r2_loo, abs=1e-5)
    np.testing.assert_allclose(almost.w, exact.w, atol=1e-5)


def test_a_planted_bridge_is_found_and_a_rotation_called_one() -> None:
    x, y, w = pair(80, 6, 0.05, seed=1)
    fitted = fit_bridge(x, y)
    np.testing.assert_allclose(fitted.w, w, atol=0.05)
    assert fitted.r2_loo > 0.98
    assert fitted.p == pytest.approx(1 / 200)
    assert "thin wrapper" in fitted.words
    assert "rotation-like" not in fitted.words
    turn = stats.ortho_group.rvs(6, random_state=3)
    turned = fit_bridge(x, x @ turn + 0.05 * np.random.default_rng(0).normal(size=x.shape))
    assert "rotation-like" in turned.words
    assert turned.orthogonality.value < 0.02
    np.testing.assert_allclose(turned.spectrum, 1.0, atol=0.05)


def test_unrelated_languages_are_not_bridged() -> None:
    """Few problems, many coordinates: training fits perfectly, left-out problems don't; 5 % false alarms."""
    false_alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        fitted: Bridge = fit_bridge(rng.normal(size=(20, 30)), rng.normal(size=(20, 30)), draws=39, seed=seed)
        false_alarms += fitted.p < 0.05
        assert fitted.words.startswith("Too few problems to tell: 20")
        assert fitted.r2_loo < 0.2
    # 200 trials at 5 %: more than 19 alarms have a probability of 0.3 %
    assert false_alarms <= 19
    memorised = fit_bridge(rng.normal(size=(20, 30)), rng.normal(size=(20, 30)), method="minimum_norm")
    assert memorised.r2_train == pytest.approx(1.0)
    assert memorised.r2_loo < 0


def test_the_random_reference_of_orthogonality() -> None:
    rng = np.random.default_rng(0)
    k, sd = 12, 0.4
    draws = [sd * rng.normal(size=(k, k)) for _ in range(4000)]
    seen = np.sqrt(np.mean([np.linalg.norm(w.T @ w - np.eye(k)) ** 2 for w in draws])) / k
    scaled = draws[0] * sd * k / np.linalg.norm(draws[0])
    # 4000 draws: 0.5 %
    assert orthogonality(scaled).random == pytest.approx(seen, rel=0.02)
    assert orthogonality(np.zeros((k, k))).value == pytest.approx(orthogonality(draws[0]).zero)
    assert orthogonality(stats.ortho_group.rvs(k, random_state=0)).value == pytest.approx(0.0, abs=1e-12)


def test_the_best_rotation_equals_scipys() -> None:
    from scipy.linalg import orthogonal_procrustes

    x, y, _ = pair(15, 4, 0.4)
    squared = 0.0
    for i in range(15):
        rest = np.arange(15) != i
        mx, my = x[rest].mean(axis=0), y[rest].mean(axis=0)
        r, _ = orthogonal_procrustes(x[rest] - mx, y[rest] - my)
        squared += ((y[i] - my - (x[i] - mx) @ r) ** 2).sum()
    assert procrustes_r2(x, y) == pytest.approx(1 - squared / ((y - y.mean(axis=0)) ** 2).sum(), abs=1e-10)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("n", "k", "method"), [(14, 4, "ridge"), (9, 12, "ridge"), (9, 12, "minimum_norm")])
def test_the_null_is_that_of_fitting_permuted_pairs(n: int, k: int, method: str, center: bool) -> None:
    """Each draw fitted as a bridge of its own, λ chosen anew; orders replayed from the seed."""
    x, y, _ = pair(n, k, 0.5, seed=6)
    fitted = fit_bridge(x, y, method=method, center=center, draws=6, seed=3)  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    wanted = [
        fit_bridge(x, y[rng.permutation(n)], method=method, center=center, draws=1).r2_loo  # type: ignore[arg-type]
        for _ in range(6)
    ]
    np.testing.assert_allclose(fitted.null, wanted, rtol=1e-8, atol=1e-8)


def test_pairs_permuted_within_kinds_keep_what_the_kind_tells() -> None:
    """Coordinates that only know the kind: above any pairing, not above pairings within kinds."""
    kinds = np.repeat(np.arange(5), 8)
    any_alarms = within_alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        centre = 3.0 * rng.normal(size=(5, 3))
        x, y = (centre[kinds] + rng.normal(size=(40, 3)) for _ in range(2))
        any_alarms += fit_bridge(x, y, draws=39, seed=seed).p < 0.05
        within_alarms += fit_bridge(x, y, groups=kinds, draws=39, seed=seed).p < 0.05
    assert any_alarms > 190
    # 200 trials at 5 %: more than 19 alarms have a probability of 0.3 %
    assert within_alarms <= 19
    with pytest.raises(AnalysisError, match="a group for each of 40 problems"):
        fit_bridge(x, y, groups=np.arange(39))


def test_problems_of_one_category_each_are_too_few_to_tell() -> None:
    """A perfect bridge, and a null that can't exchange anything, or in four ways only."""
    x, y, *_ = pair(16, 3, 0.01, seed=1)
    alone = fit_bridge(x, y, groups=np.arange(16), draws=39)
    assert (alone.p, alone.least_p) == (1.0, 1.0)
    assert alone.words.startswith("Too few problems of one category to tell: exchanging pairs gives p = 1 ")
    two = fit_bridge(x, y, groups=np.repeat(np.arange(14), [2, 2, *[1] * 12]), draws=39)
    assert two.least_p == 1 / 4
    assert two.words.startswith("Too few problems of one category to tell")
    four = fit_bridge(x, y, groups=np.repeat(np.arange(4), 4), draws=39)
    assert four.least_p == 1 / 40
    assert four.words.startswith("The bridge is a thin wrapper")
    assert profile([(x, y)], groups=np.arange(16), draws=39).least_p == 1.0


def test_a_profile_is_every_blocks_bridge_and_its_p_holds_for_all() -> None:
    places = [pair(16, 3, noise, seed=i)[:2] for i, noise in enumerate((0.3, 1.0, 30.0))]
    found = profile(places, draws=59, seed=2)
    nulls = []
    for i, (x, y) in enumerate(places):
        one = fit_bridge(x, y, draws=59, seed=2)
        assert found.r2_loo[i] == pytest.approx(one.r2_loo, abs=1e-12)
        nulls.append(one.null)
    np.testing.assert_allclose(found.largest, np.max(nulls, axis=0), atol=1e-10)
    assert found.p[0] == pytest.approx(1 / 60)
    assert found.p[2] > 0.05
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        noise = [(rng.normal(size=(12, 4)), rng.normal(size=(12, 4))) for _ in range(6)]
        alarms += bool((profile(noise, draws=39, seed=seed).p < 0.05).any())
    assert alarms <= 19
    with pytest.raises(AnalysisError, match="needs places"):
        profile([])


def test_the_random_spectrum_covers_random_matrices() -> None:
    low, high = random_spectrum(6)
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(300):
        w = rng.normal(size=(6, 6))
        values = np.linalg.svd(w / np.linalg.norm(w), compute_uv=False)
        inside.append((values >= low) & (values <= high))
    # 95 % from 200 draws, judged on 300: 3 standard errors are 6 %
    assert np.mean(inside, axis=0) == pytest.approx(0.95, abs=0.06)
    turn = np.full(6, 1 / np.sqrt(6))
    assert (turn < low)[0]
    assert (turn > high)[-1]


def test_words_follow_the_left_out_value() -> None:
    assert "thin wrapper" in describe(0.81, 0.01, 0.0)
    assert "partly linear" in describe(0.8, 0.01, 0.0)
    assert "nonlinear" in describe(0.49, 0.01, 0.0)
    assert describe(0.99, 0.05, 0.99).startswith("No bridge found")
    assert "nonlinear" in describe(0.82, 0.01, 0.0, known=0.8), "the categories' means alone give 0.8"
    assert "thin wrapper" in describe(0.99, 0.01, 0.0, known=0.8)
    assert "permuted pairs 0.80" in describe(0.99, 0.01, 0.0, known=0.8)
    assert describe(0.81, 0.01, 0.9, known=-0.4) == describe(0.81, 0.01, 0.9)
    assert describe(0.9, float("nan"), 0.9).startswith("No bridge found")


@pytest.mark.parametrize(
    ("x", "y", "options", "said"),
    [
        (np.ones((5, 2)), np.ones((5, 3)), {}, "one shape, 4 problems or more. Given: shapes"),
        (np.eye(3), np.eye(3), {}, "4 problems or more"),
        (np.ones((5, 2)), np.eye(5, 2), {}, "finite numbers that vary"),
        (np.eye(5), np.eye(5), {"alphas": [0.0]}, "alphas > 0"),
        (np.eye(5), np.eye(5), {"method": "ols"}, "ridge or minimum_norm"),
    ],
)
def test_unusable_input_is_refused(
    x: np.ndarray, y: np.ndarray, options: dict[str, object], said: str
) -> None:
    with pytest.raises(AnalysisError, match=said):
        fit_bridge(x, y, **options)  # type: ignore[arg-type]


def test_of_no_more_problems_than_coordinates_nothing_is_said() -> None:
    """Exactly linear coordinates of 20 problems are found, and left out they look nonlinear."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 50))
    found = fit_bridge(x, x @ rng.normal(size=(50, 50)))
    assert found.r2_loo < 0.5
    assert found.words == "Too few problems to tell: 20, where 50 coordinates need more than 50."
    more = rng.normal(size=(200, 50))
    assert "thin wrapper" in fit_bridge(more, more @ rng.normal(size=(50, 50))).words
