"""The ridge path against scikit-learn, brute-force refits and unrelated data; the simple maps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from engine.errors import AnalysisError
from engine.stats.moments import fit_moments, match_moments
from engine.transport import Identity, MeanShift, MomentMatching, RidgeTransport, r2

ALPHAS = tuple(np.logspace(-1, 4, 6))


def activations(seed: int, n: int, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx)) * np.logspace(1, -1, dx) + 5 * rng.normal(size=dx)
    return x, x @ rng.normal(size=(dx, dy)) / np.sqrt(dx) + 0.5 * rng.normal(size=(n, dy)) - 3.0


def standardise(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0, ddof=1)


@pytest.mark.parametrize(("n", "dx", "dy"), [(60, 9, 7), (14, 40, 30), (20, 20, 3)])
def test_path_equals_sklearn_ridge_at_every_penalty(n: int, dx: int, dy: int) -> None:
    x, y = activations(1, n, dx, dy)
    new_x, new_y = activations(2, 8, dx, dy)
    fitted = RidgeTransport(ALPHAS).fit(x, y)
    path = fitted.predict_path(new_x, ALPHAS)
    scores = fitted.score_path(new_x, new_y)
    for alpha, predicted, score in zip(ALPHAS, path, scores, strict=True):
        oracle = Ridge(alpha).fit(standardise(x), standardise(y))
        standard = oracle.predict((new_x - x.mean(0)) / x.std(0, ddof=1))
        expected = standard * y.std(0, ddof=1) + y.mean(0)
        # 1e-8: float64 and a condition number below 1e6
        np.testing.assert_allclose(predicted, expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(fitted.at(alpha).predict(new_x), expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(fitted.at(alpha).coefficients(), oracle.coef_.T, atol=1e-8)
        assert score == pytest.approx(r2(new_y, expected), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize(("n", "dx", "dy"), [(30, 6, 4), (12, 25, 40), (12, 25, 3)])
def test_leave_one_out_equals_refitting(n: int, dx: int, dy: int) -> None:
    x, y = activations(3, n, dx, dy)
    xs, ys = standardise(x), standardise(y)  # frozen: the refits use the same units
    fitted = RidgeTransport(ALPHAS).fit(x, y)
    for alpha, error in zip(ALPHAS, fitted.errors_, strict=True):
        squares = 0.0
        for i in range(n):
            rest = np.arange(n) != i
            model = Ridge(alpha).fit(xs[rest], ys[rest])
            squares += ((ys[i] - model.predict(xs[i : i + 1])) ** 2).sum()
        assert error == pytest.approx(squares / (n * dy), rel=1e-8)
    assert fitted.alpha_ == RidgeCV(ALPHAS).fit(xs, ys).alpha_


def test_leave_one_out_keeps_its_digits_at_vanishing_penalties() -> None:
    x, y = activations(13, 12, 60, 30)
    errors = RidgeTransport((1e-13, 1e-9, 1e-6)).fit(x, y).errors_
    # λ → 0 is the minimum-norm fit: with K the Gram bordered by the intercept, e_i = (K⁻¹y)_i/(K⁻¹)_ii
    xs, ys = standardise(x), standardise(y)
    bordered = np.block([[xs @ xs.T, np.ones((12, 1))], [np.ones((1, 12)), np.zeros((1, 1))]])
    inverse = np.linalg.inv(bordered)[:12, :12]
    expected = (((inverse @ ys) / np.diag(inverse)[:, None]) ** 2).mean()
    # λ/σ² is below 1e-6/10 at the largest of the three
    np.testing.assert_allclose(errors, expected, rtol=1e-6)


GROUPINGS = {
    "pairs": np.arange(24) // 2,
    "uneven": np.array([0] * 5 + [1, 2, 3] * 3 + [4, 4] + list(range(5, 13))),
}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(("dx", "dy"), [(6, 4), (40, 50), (40, 3), (6, 50)])
def test_leave_one_group_out_equals_refitting(grouping: str, dx: int, dy: int) -> None:
    groups = GROUPINGS[grouping]
    x, y = activations(14, 24, dx, dy)
    xs, ys = standardise(x), standardise(y)  # frozen: the refits use the same units
    fitted = RidgeTransport(ALPHAS).fit(x, y, groups=groups)
    errors = []
    for alpha in ALPHAS:
        squares = 0.0
        for group in np.unique(groups):
            out = groups == group
            squares += ((ys[out] - Ridge(alpha).fit(xs[~out], ys[~out]).predict(xs[out])) ** 2).sum()
        errors.append(squares / (24 * dy))
    # float64; I - H loses at most 1/min eigenvalue, here below 1e4
    np.testing.assert_allclose(fitted.errors_, errors, rtol=1e-8)
    assert fitted.alpha_ == ALPHAS[int(np.argmin(errors))]


def test_pairs_that_repeat_each_other_do_not_make_the_penalty_vanish() -> None:
    rng = np.random.default_rng(15)
    x, y = np.repeat(rng.normal(size=(20, 30)), 2, axis=0), np.repeat(rng.normal(size=(20, 30)), 2, axis=0)
    jitter = 1e-3 * rng.normal(size=(2, 40, 30))
    alone, grouped = RidgeTransport(), RidgeTransport()
    alone.fit(x + jitter[0], y + jitter[1])
    grouped.fit(x + jitter[0], y + jitter[1], groups=np.arange(40) // 2)
    # unrelated sides: predicting the mean is best, unless a prompt's double stays in the fit
    assert alone.alpha_ < 1
    assert grouped.alpha_ > 1e3


def test_held_out_choice_equals_refitting_and_keeps_groups_together() -> None:
    x, y = activations(4, 40, 12, 9)
    groups = np.repeat(np.arange(20), 2)
    fitted = RidgeTransport(ALPHAS, selection="holdout", holdout=0.3, seed=5).fit(x, y, groups=groups)
    out = np.isin(groups, np.random.default_rng(5).permutation(20)[:6])
    xs = (x - x[~out].mean(0)) / x[~out].std(0, ddof=1)
    ys = (y - y[~out].mean(0)) / y[~out].std(0, ddof=1)
    errors = [((Ridge(a).fit(xs[~out], ys[~out]).predict(xs[out]) - ys[out]) ** 2).mean() for a in ALPHAS]
    np.testing.assert_allclose(fitted.errors_, errors, rtol=1e-8)
    assert fitted.alpha_ == ALPHAS[int(np.argmin(errors))]


def test_constant_dimensions_are_dropped_and_reported() -> None:
    x, y = activations(6, 30, 8, 4)
    wide = np.insert(x, [0, 3], np.float32(700.1), axis=1)
    target = np.insert(y, 1, 2.5, axis=1)
    fitted = RidgeTransport(ALPHAS).fit(wide, target)
    assert fitted.dropped_share_ == pytest.approx(0.2)
    assert fitted.dropped_targets_share_ == pytest.approx(0.2)
    plain = RidgeTransport((fitted.alpha_,)).fit(x, y)
    predicted = fitted.predict(wide)
    np.testing.assert_allclose(np.delete(predicted, 1, axis=1), plain.predict(x), atol=1e-9)
    np.testing.assert_array_equal(predicted[:, 1], 2.5)


@pytest.mark.parametrize(("n", "d"), [(200, 15), (80, 120)])
def test_planted_map_is_recovered(n: int, d: int) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2 * n, 8)) @ rng.normal(size=(8, d)) + 3.0
    y = x @ rng.normal(size=(d, d)) / np.sqrt(d) + 0.1 * rng.normal(size=(2 * n, d))
    assert RidgeTransport().fit(x[:n], y[:n]).score(x[n:], y[n:]) > 0.97


def test_unrelated_sides_have_no_validation_r2() -> None:
    positive = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n, d = (30, 60) if seed % 2 else (80, 10)
        x, y = rng.normal(size=(n + 20, d)), rng.normal(size=(n + 20, d))
        positive += RidgeTransport().fit(x[:n], y[:n]).score(x[n:], y[n:]) > 0
    assert positive <= 14  # 7 % of 200


def test_score_is_the_variance_weighted_r2_of_sklearn() -> None:
    x, y = activations(8, 40, 6, 5)
    fitted = RidgeTransport(ALPHAS).fit(x, y)
    expected = r2_score(y, fitted.predict(x), multioutput="variance_weighted")
    assert fitted.score(x, y) == pytest.approx(expected, rel=1e-12)


def test_r2_counts_errors_in_dimensions_that_do_not_vary() -> None:
    y = np.column_stack([np.arange(4.0), np.ones(4)])
    assert r2(y, y + np.array([0.0, 1.0])) == pytest.approx(1 - 4 / 5)
    assert np.isnan(r2(np.ones((3, 2)), np.zeros((3, 2))))


def test_moment_matching_is_the_live_patch_one() -> None:
    x, y = activations(9, 25, 6, 6)
    x[:, 2] = np.float32(411.3)
    matched = MomentMatching().fit(x, y)
    new = activations(10, 5, 6, 6)[0]
    np.testing.assert_array_equal(matched.predict(new), match_moments(new, fit_moments(x), fit_moments(y)))
    assert matched.constant_ == 1
    moved = np.delete(matched.predict(x), 2, axis=1)
    np.testing.assert_allclose(moved.mean(0), np.delete(y, 2, axis=1).mean(0))
    np.testing.assert_allclose(moved.std(0), np.delete(y, 2, axis=1).std(0))


def test_identity_and_mean_shift() -> None:
    x, y = activations(11, 25, 6, 6)
    np.testing.assert_array_equal(Identity().fit(x, y).predict(x), x)
    shifted = MeanShift().fit(x, y).predict(x)
    np.testing.assert_allclose(shifted.mean(0), y.mean(0))
    np.testing.assert_allclose(shifted - shifted.mean(0), x - x.mean(0), atol=1e-12)


def test_refusals_say_what_was_wanted() -> None:
    x, y = activations(12, 20, 5, 4)
    with pytest.raises(AnalysisError, match="widths 5 and 4"):
        MomentMatching().fit(x, y)
    with pytest.raises(AnalysisError, match="alphas > 0"):
        RidgeTransport((0.0, 1.0)).fit(x, y)
    with pytest.raises(AnalysisError, match="'loo' or 'holdout'"):
        RidgeTransport(selection="best").fit(x, y)
    with pytest.raises(AnalysisError, match="One group holds every prompt"):
        RidgeTransport().fit(x, y, groups=np.zeros(20))
    with pytest.raises(AnalysisError, match="0 of 20 units held out"):
        RidgeTransport(selection="holdout", holdout=0.01).fit(x, y)
