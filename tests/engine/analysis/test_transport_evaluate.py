"""Scores of a map against their definitions, on planted pairs and on unrelated ones; the composed maps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.metrics import r2_score

from engine.errors import AnalysisError
from engine.similarity import cka
from engine.transport import (
    ClusteredTransport,
    Identity,
    LogitSubspaceRidge,
    MeanShift,
    MomentMatching,
    Paired,
    RidgeTransport,
    ScaledProcrustes,
    alpha_auto,
    describe,
    evaluate_pairs,
    evaluate_transport,
    unembedding_basis,
)


def pair(seed: int, n: int, d: int, noise: float = 0.1) -> tuple[np.ndarray, ...]:
    """Rotated and stretched activations with a large mean, split in half: x, y, validation x, y."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * n, d)) + 6.0
    y = 2 * (x - 6.0) @ np.linalg.qr(rng.normal(size=(d, d)))[0] + noise * rng.normal(size=(2 * n, d)) + 9.0
    return x[:n], y[:n], x[n:], y[n:]


def test_every_score_equals_its_definition() -> None:
    x, y, xv, yv = pair(0, 50, 6, noise=1.0)
    unfitted = ScaledProcrustes(n_components=3)
    scores = evaluate_transport(unfitted, x, y, xv, yv, n_shuffles=3, seed=4)
    fitted = clone(unfitted).fit(x, y)
    assert not hasattr(unfitted, "rank_")
    train, mapped, centre = fitted.predict(x), fitted.predict(xv), y.mean(0)
    assert scores.r2_train == pytest.approx(r2_score(y, train, multioutput="variance_weighted"))
    assert scores.r2_validation == pytest.approx(r2_score(yv, mapped, multioutput="variance_weighted"))
    assert scores.cka_raw == pytest.approx(cka.linear_cka(xv, yv))
    assert scores.cka_mapped_debiased == pytest.approx(cka.linear_cka(mapped, yv, debiased=True))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(mapped, yv, strict=True)]
    assert scores.cosine == pytest.approx(np.mean(cosines))
    lengths = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(y, train, strict=True)]
    assert scores.alpha_vector == pytest.approx(np.median(lengths))
    lengths = [np.linalg.norm(a - centre) / np.linalg.norm(b - centre) for a, b in zip(y, train, strict=True)]
    assert scores.alpha_deviation == pytest.approx(np.median(lengths))
    rng = np.random.default_rng(4)
    nulls = [clone(unfitted).fit(x, y[rng.permutation(50)]).score(xv, yv) for _ in range(3)]
    assert scores.r2_shuffled == pytest.approx(np.mean(nulls))
    assert scores.r2_shuffled_max == pytest.approx(max(nulls))
    assert scores.r2_validation_whitened == pytest.approx(fitted.score_whitened(xv, yv))
    again = evaluate_transport(fitted, x, y, xv, yv, n_shuffles=3, seed=4)
    assert again == scores
    assert np.isnan(evaluate_transport(RidgeTransport(), x, y, xv, yv).r2_train_whitened)


def test_the_interval_of_r2_is_the_bootstrap_over_pairs() -> None:
    x, y, xv, yv = pair(11, 60, 5, noise=2.0)
    groups = np.arange(60) // 2
    fitted = RidgeTransport().fit(x, y)
    scores = evaluate_pairs(fitted, Paired.of(x, y), Paired.of(xv, yv, groups), n_shuffles=0, n_pairings=0)
    rng, centre, predicted, values = np.random.default_rng(0), yv.mean(0), fitted.predict(xv), []
    for _ in range(4000):
        rows = np.concatenate([(2 * g, 2 * g + 1) for g in rng.integers(0, 30, 30)])
        missed, total = ((yv - predicted)[rows] ** 2).sum(), ((yv - centre)[rows] ** 2).sum()
        values.append(1 - missed / total)
    low, high = np.quantile(values, [0.025, 0.975])
    # quantiles of 1000 and of 4000 draws: a tenth of the interval is five of their standard errors
    assert scores.r2_low == pytest.approx(low, abs=0.1 * (high - low))
    assert scores.r2_high == pytest.approx(high, abs=0.1 * (high - low))
    assert scores.r2_low < scores.r2_validation < scores.r2_high


def test_planted_map_is_said_to_predict() -> None:
    scores = evaluate_transport(ScaledProcrustes(), *pair(1, 200, 8))
    assert scores.words.startswith("The map predicts new prompts")
    assert scores.r2_validation > 0.98
    assert scores.r2_shuffled < 0.1
    assert scores.cka_mapped_debiased > scores.cka_raw_debiased - 0.01
    assert scores.alpha_deviation == pytest.approx(1.0, abs=0.05)


def test_right_direction_with_wrong_amplitude_is_said_so_and_alpha_repairs_it() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(size=(200, 10)) + 3.0
    x = 4 * (y - 3.0) + 0.1 * rng.normal(size=y.shape)
    scores = evaluate_transport(MeanShift(), x[:100], y[:100], x[100:], y[100:])
    assert scores.r2_validation < 0
    assert "Right direction, wrong amplitude" in scores.words
    assert scores.alpha_deviation == pytest.approx(0.25, rel=0.01)
    fitted, centre = MeanShift().fit(x[:100], y[:100]), y[:100].mean(0)
    repaired = centre + scores.alpha_deviation * (fitted.predict(x[100:]) - centre)
    assert r2_score(y[100:], repaired, multioutput="variance_weighted") > 0.99


@pytest.mark.parametrize("estimator", [ScaledProcrustes(), RidgeTransport((1.0, 1e2, 1e4)), MomentMatching()])
@pytest.mark.parametrize(("n", "d"), [(60, 8), (25, 50)])
def test_unrelated_pairs_get_no_praise(estimator: ScaledProcrustes, n: int, d: int) -> None:
    praised, outside, draws = 0, 0, 40
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        # a shared large mean: plain cosines are near 1, and with n < d biased CKA is high
        x, y, xv, yv = (rng.normal(size=(n, d)) + 8.0 for _ in range(4))
        fitted = clone(estimator).fit(x, y)
        scores = evaluate_transport(fitted, x, y, xv, yv, n_shuffles=1, seed=seed)
        assert scores.cosine > 0.9
        praised += scores.r2_validation > 0 or "Right direction" in scores.words
        null = cka.permutation_null(
            cka.gram(fitted.predict(xv))[None], cka.gram(yv)[None], n_draws=39, seed=seed
        )
        outside += float(null.p[0]) <= 0.05
    # 7 % of the draws; the CKA's permutation test is at 5 %, and 7 of 40 exceed it with probability 0.3 %
    assert praised <= 0.07 * draws
    assert outside <= 6


def test_overfit_maps_are_told_from_good_ones() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 40))
    y = x @ rng.normal(size=(40, 40)) + 3 * rng.normal(size=(300, 40))
    scores = evaluate_transport(RidgeTransport((1e-3,)), x[:60], y[:60], x[60:], y[60:])
    assert "in part" in scores.words or "no better" in scores.words
    assert scores.r2_train > 0.8


def test_alpha_needs_a_length() -> None:
    y = np.random.default_rng(0).normal(size=(5, 3))
    assert np.isnan(alpha_auto(y, np.tile(y.mean(0), (5, 1)), y.mean(0)))
    assert alpha_auto(y, 2 * y) == pytest.approx(0.5)


def test_too_few_validation_prompts() -> None:
    x, y, xv, yv = pair(0, 20, 4)
    with pytest.raises(AnalysisError, match="at least 4"):
        evaluate_transport(Identity(), x, y, xv[:3], yv[:3])


def test_logit_ridge_is_ridge_inside_and_moment_matching_outside() -> None:
    x, y, xv, _ = pair(6, 60, 10, noise=0.5)
    rng = np.random.default_rng(7)
    unembedding, gain = rng.normal(size=(35, 10)), rng.uniform(0.5, 2, size=10)
    basis = np.linalg.svd(unembedding * gain)[2][:4].T
    fitted = LogitSubspaceRidge(unembedding, 4, gain=gain, alphas=(1.0, 10.0)).fit(x, y)
    np.testing.assert_allclose(fitted.basis_ @ fitted.basis_.T, basis @ basis.T, atol=1e-10)
    inside = RidgeTransport((1.0, 10.0)).fit(x @ fitted.basis_, y @ fitted.basis_).predict(xv @ fitted.basis_)
    predicted = fitted.predict(xv)
    np.testing.assert_allclose(predicted @ fitted.basis_, inside, atol=1e-9)
    rest = np.eye(10) - basis @ basis.T
    np.testing.assert_allclose(predicted @ rest, MomentMatching().fit(x, y).predict(xv) @ rest, atol=1e-9)
    kept = LogitSubspaceRidge(unembedding, 4, gain=gain, outside="identity").fit(x, y).predict(xv)
    np.testing.assert_allclose(kept @ rest, xv @ rest, atol=1e-9)


def test_joint_logit_basis_is_that_of_the_stacked_unembeddings() -> None:
    rng = np.random.default_rng(8)
    one, two = rng.normal(size=(30, 9)), 2 * rng.normal(size=(20, 9))
    basis = unembedding_basis(one, 3, other=two)
    expected = np.linalg.svd(np.vstack([one, two]))[2][:3]
    np.testing.assert_allclose(np.abs(expected @ basis), np.eye(3), atol=1e-9)
    x, y, _, _ = pair(6, 30, 9)
    with pytest.raises(AnalysisError, match="both unembeddings"):
        LogitSubspaceRidge(one, 3, joint=True).fit(x, y)
    with pytest.raises(AnalysisError, match="1 ≤ n_components ≤ 9"):
        LogitSubspaceRidge(one, 10).fit(x, y)
    with pytest.raises(AnalysisError, match="another width"):
        LogitSubspaceRidge(one[:, :5], 3).fit(x, y)


def test_clusters_have_their_own_maps_and_small_ones_fall_back() -> None:
    rng = np.random.default_rng(9)
    sizes = (60, 50, 5)
    label = np.repeat(np.arange(3), sizes)
    x = rng.normal(size=(115, 4)) + 40 * np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])[label]
    turns = [np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(3)]
    y = np.stack([row @ turns[c] for row, c in zip(x, label, strict=True)])
    fitted = ClusteredTransport(RidgeTransport((1e-3,)), n_clusters=3).fit(x, y)
    assert sorted(fitted.sizes_) == sorted(sizes)
    assert fitted.fallback_rate_ == pytest.approx(5 / 115)
    assert fitted.fallback_rate(x[110:]) == 1.0
    np.testing.assert_allclose(fitted.predict(x[110:]), fitted.global_.predict(x[110:]))
    own = RidgeTransport((1e-3,)).fit(x[:60], y[:60])
    np.testing.assert_allclose(fitted.predict(x[:60]), own.predict(x[:60]))
    assert fitted.score(x[:110], y[:110]) > 0.999 > RidgeTransport((1e-3,)).fit(x, y).score(x[:110], y[:110])
    labels = KMeans(3, n_init=4, random_state=0).fit_predict(x)
    np.testing.assert_array_equal(fitted.clusters(x), labels)


def test_one_cluster_is_the_global_map() -> None:
    x, y, xv, _ = pair(10, 40, 5)
    one = ClusteredTransport(n_clusters=1).fit(x, y)
    np.testing.assert_allclose(one.predict(xv), RidgeTransport().fit(x, y).predict(xv))
    with pytest.raises(AnalysisError, match="n_clusters ≥ 1"):
        ClusteredTransport(n_clusters=0).fit(x, y)


@pytest.mark.parametrize(
    ("r2", "said"),
    [(0.5, "0.50"), (0.979, "0.98"), (0.9855, "0.986"), (0.99823, "0.9982"), (1.0, "1 (within 1e-05)")],
)
def test_an_r2_close_to_one_is_told_from_one(r2: float, said: str) -> None:
    assert describe(r2, r2, 0.0, 1.0, 1.0) == f"The map predicts new prompts: R² {said}."


def test_a_rotation_is_no_matter_of_amplitude() -> None:
    """CKA 1 for y = xQ, at every amplitude as far off as at another; a scaled y is told to set α."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12))
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    rotated = evaluate_transport(Identity(), x[:100], (x @ turn)[:100], x[100:], (x @ turn)[100:])
    assert rotated.cka_mapped == pytest.approx(1.0)
    assert rotated.words.startswith("Same geometry, rotated")
    assert "Set α" not in rotated.words
    scaled = evaluate_transport(Identity(), x[:100], 0.3 * x[:100], x[100:], 0.3 * x[100:])
    assert scaled.words.startswith("Right direction, wrong amplitude")
