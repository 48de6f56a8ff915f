"""Every map on sides with nothing in common, and on sides with a planted map."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from engine.transport import (
    TRANSPORTS,
    ClusteredTransport,
    Identity,
    LogitSubspaceRidge,
    MeanShift,
    MomentMatching,
    Paired,
    PCAProcrustes,
    RidgeTransport,
    ScaledProcrustes,
    TransportMap,
    evaluate_pairs,
)

SEEDS, TRAIN, VALIDATION, WIDTH = 200, 40, 16, 10
MAPS: dict[str, TransportMap] = {
    "Identity": Identity(),
    "MeanShift": MeanShift(),
    "MomentMatching": MomentMatching(),
    "RidgeTransport": RidgeTransport(),
    "PCAProcrustes": PCAProcrustes(),
    "ScaledProcrustes": ScaledProcrustes(),
    "LogitSubspaceRidge": LogitSubspaceRidge(np.random.default_rng(0).normal(size=(30, WIDTH)), 4),
    "ClusteredTransport": ClusteredTransport(n_clusters=2, min_size=8),
}


def test_every_known_map_is_covered() -> None:
    assert set(MAPS) == set(TRANSPORTS)


@pytest.mark.parametrize("name", MAPS)
def test_unrelated_pairs_carry_nothing_over(name: str) -> None:
    clean = 0
    for seed in range(SEEDS):
        rng = np.random.default_rng([1, seed])
        sides = [
            np.repeat(rng.normal(size=(n // 2, WIDTH)), 2, axis=0) + 0.7 * rng.normal(size=(n, WIDTH)) + 3.0
            for n in (TRAIN, TRAIN, VALIDATION, VALIDATION)
        ]
        train = Paired.of(*sides[:2], np.arange(TRAIN) // 2, np.arange(TRAIN) % 2)
        validation = Paired.of(*sides[2:], np.arange(VALIDATION) // 2, np.arange(VALIDATION) % 2)
        scores = evaluate_pairs(MAPS[name], train, validation, n_shuffles=0, n_pairings=199, seed=seed)
        inside = scores.cka_null_low <= scores.cka_mapped_debiased <= scores.cka_null_high
        clean += scores.r2_validation <= 0 and inside
    assert clean >= 0.93 * SEEDS


def planted(seed: int, noise: float, rank: int = WIDTH) -> tuple[np.ndarray, ...]:
    """Rotated and stretched by 1.5 inside `rank` directions: x, y, validation x, y."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, WIDTH)) + 4.0
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    y = 1.5 * (x - 4.0) @ turn[:, :rank] @ turn[:, :rank].T @ turn + noise * rng.normal(size=x.shape) - 2.0
    return x[:400], y[:400], x[400:], y[400:]


@pytest.mark.parametrize("rank", [WIDTH, 3])
@pytest.mark.parametrize("name", ["RidgeTransport", "ScaledProcrustes", "ClusteredTransport"])
def test_a_planted_map_is_recovered(name: str, rank: int) -> None:
    x, y, xv, yv = planted(1, 0.1, rank)
    estimator = ScaledProcrustes(n_components=rank) if name == "ScaledProcrustes" else MAPS[name]
    scores = evaluate_pairs(estimator, Paired.of(x, y), Paired.of(xv, yv), n_shuffles=2)
    # the noise is 1 % of a variance of 2.25 · rank / 10 per dimension
    assert scores.r2_validation > 0.9
    assert scores.cka_mapped_debiased > scores.cka_null_high
    assert scores.r2_shuffled_max < 0.05


def test_a_planted_rotation_without_scale_is_recovered_by_principal_components() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, WIDTH)) * np.linspace(3, 1, WIDTH)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    fitted = PCAProcrustes().fit(x[:300], x[:300] @ turn)
    np.testing.assert_allclose(fitted.predict(x[300:]), x[300:] @ turn, atol=1e-8)


def test_planted_shifts_and_spreads_are_recovered_by_the_simple_maps() -> None:
    x, rng = np.random.default_rng(3).normal(size=(200, WIDTH)), np.random.default_rng(4)
    shift, spread = rng.normal(size=WIDTH), rng.uniform(0.5, 2, WIDTH)
    np.testing.assert_allclose(MeanShift().fit(x, x + shift).predict(x), x + shift, atol=1e-12)
    np.testing.assert_allclose(MomentMatching().fit(x, x * spread + shift).predict(x), x * spread + shift)


def standard_ridge(x: np.ndarray, y: np.ndarray, alpha: float, new: np.ndarray) -> np.ndarray:
    """Ridge between sides in units of their sd (n − 1), by scikit-learn."""
    to_x, to_y = StandardScaler().fit(x), StandardScaler().fit(y)
    bessel = np.sqrt(len(x) / (len(x) - 1))
    model = Ridge(alpha).fit(to_x.transform(x) / bessel, to_y.transform(y) / bessel)
    return np.asarray(to_y.inverse_transform(model.predict(to_x.transform(new) / bessel) * bessel))


def test_clustered_maps_equal_scikit_learn_cluster_by_cluster() -> None:
    x, y, new, _ = planted(5, 0.5)
    fitted = ClusteredTransport(RidgeTransport((3.0,)), n_clusters=3, min_size=135, seed=1).fit(x, y)
    means = KMeans(3, n_init=4, random_state=1).fit(x)
    assert 0 < fitted.fallback_.sum() < 3
    places = means.predict(new)
    for c in range(3):
        own, asked = means.labels_ == c, new[places == c]
        rows = (x, y) if own.sum() < 135 else (x[own], y[own])
        expected = standard_ridge(*rows, 3.0, asked)
        np.testing.assert_allclose(fitted.predict(asked), expected, rtol=1e-6, atol=1e-6)


def test_logit_ridge_equals_scikit_learn_inside_and_scaling_outside() -> None:
    x, y, new, _ = planted(6, 0.5)
    rng = np.random.default_rng(7)
    unembedding, gain = rng.normal(size=(30, WIDTH)), rng.uniform(0.5, 2, WIDTH)
    fitted = LogitSubspaceRidge(unembedding, 4, gain=gain, alphas=(5.0,)).fit(x, y)
    basis = fitted.basis_
    expected_basis = np.linalg.svd(unembedding @ np.diag(gain))[2][:4]
    np.testing.assert_allclose(np.abs(expected_basis @ basis), np.eye(4), atol=1e-9)
    inside = standard_ridge(x @ basis, y @ basis, 5.0, new @ basis)
    outside = y.mean(0) + (new - x.mean(0)) * y.std(0) / x.std(0)
    expected = outside + (inside - outside @ basis) @ basis.T
    np.testing.assert_allclose(fitted.predict(new), expected, rtol=1e-6, atol=1e-6)


def test_maps_can_be_cloned_before_and_after_fitting() -> None:
    x, y, *_ = planted(8, 0.5)
    for estimator in MAPS.values():
        fitted = clone(estimator).fit(x, y)
        np.testing.assert_array_equal(clone(fitted).fit(x, y).predict(x[:5]), fitted.predict(x[:5]))
