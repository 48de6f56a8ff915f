"""Procrustes maps against the dense d × d formulas, planted maps and data with nothing in common."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from engine.errors import AnalysisError
from engine.transport import PCAProcrustes, ScaledProcrustes, r2

SHAPES = [(60, 9, 9), (12, 40, 40), (20, 20, 20), (15, 30, 8), (40, 6, 50)]


def activations(seed: int, n: int, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Anisotropic, with large means and something in common, like residual streams."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx)) * np.logspace(1, -1, dx) + 5 * rng.normal(size=dx)
    y = x @ rng.normal(size=(dx, dy)) / np.sqrt(dx) + 0.5 * rng.normal(size=(n, dy)) - 3.0
    return x, y


def dense_whitening(x: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """C^{-1/2} and C^{1/2} by an eigendecomposition of the d × d covariance."""
    d = x.shape[1]
    sigma = np.atleast_2d(np.cov(x, rowvar=False))
    values, vectors = np.linalg.eigh((1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / d * np.eye(d))
    values = np.maximum(values, 1e-6 * values.max())
    return (vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T


def dense_map(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, shrinkage: float, k: int, scale: str
) -> np.ndarray:
    (wx, _), (wy, colour) = dense_whitening(x, shrinkage), dense_whitening(y, shrinkage)
    xw, yw = (x - x.mean(0)) @ wx, (y - y.mean(0)) @ wy
    u, s, vt = np.linalg.svd(xw.T @ yw)
    below = np.linalg.norm(xw @ u[:, :k] if scale == "fit" else xw) ** 2
    return s[:k].sum() / below * (new - x.mean(0)) @ wx @ u[:, :k] @ vt[:k] @ colour + y.mean(0)


@pytest.mark.parametrize(("n", "dx", "dy"), SHAPES)
@pytest.mark.parametrize("shrinkage", [0.0, 0.05, 0.6, 1.0])
@pytest.mark.parametrize("scale", ["fit", "seed"])
def test_every_rank_equals_the_dense_formula(n: int, dx: int, dy: int, shrinkage: float, scale: str) -> None:
    x, y = activations(1, n, dx, dy)
    new = activations(2, 7, dx, dy)[0]
    fitted = ScaledProcrustes(shrinkage, scale=scale).fit(x, y)
    assert fitted.rank_ == min(n - 1, dx, dy)
    # without shrinkage a side of n − 1 dimensions is whitened exactly: all S_i equal, truncations arbitrary
    tied = shrinkage == 0 and n <= max(dx, dy) + 1
    assert (fitted.singular_values_[0] < (1 + 1e-9) * fitted.singular_values_[-1]) == tied
    ranks = [fitted.rank_] if tied else list(range(1, fitted.rank_ + 1))
    path = fitted.predict_path(new, ranks)
    for k, part, predicted in zip(ranks, fitted.rank_path(ranks), path, strict=True):
        expected = dense_map(x, y, new, shrinkage, k, scale)
        size = np.abs(expected - y.mean(0)).max()
        # 1e-6 of the map's own size: the dense route's inverse square roots lose about half the digits
        np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-6 * size)
        np.testing.assert_allclose(part.predict(new), predicted, rtol=0, atol=1e-10 * size)
    np.testing.assert_allclose(fitted.predict(new), path[-1], rtol=0, atol=1e-10 * np.abs(path[-1]).max())


@pytest.mark.parametrize("shrinkage", [0.0, 1e-9])
def test_eigenvalues_are_floored_as_in_the_dense_formula(shrinkage: float) -> None:
    rng = np.random.default_rng(16)
    x = rng.normal(size=(60, 8)) * np.logspace(3, -3, 8)  # variances over 12 decades, the floor is at 6
    y = x @ rng.normal(size=(8, 8)) * np.logspace(-3, 3, 8) + 0.1 * rng.normal(size=(60, 8))
    fitted = ScaledProcrustes(shrinkage).fit(x, y)
    for k in (1, 3, fitted.rank_):
        expected = dense_map(x, y, x, shrinkage, k, "fit")
        size = np.abs(expected - y.mean(0)).max()
        np.testing.assert_allclose(fitted.at_rank(k).predict(x), expected, rtol=0, atol=1e-6 * size)
    covariance = (1 - shrinkage) * np.linalg.eigvalsh(np.cov(y, rowvar=False))[::-1]
    covariance += shrinkage * np.trace(np.cov(y, rowvar=False)) / 8
    wanted = np.maximum(covariance, 1e-6 * covariance[0])
    # the floor is 1e-6 of the largest, eigenvalues are good to 1e-16 of it
    np.testing.assert_allclose(
        fitted.target_eigenvalues_, wanted[: fitted.target_eigenvalues_.size], rtol=1e-8
    )


def test_the_scale_is_the_least_squares_one() -> None:
    x, y = activations(3, 50, 8, 8)
    (wx, _), (wy, _) = dense_whitening(x, 0.05), dense_whitening(y, 0.05)
    xw, yw = (x - x.mean(0)) @ wx, (y - y.mean(0)) @ wy
    fitted = ScaledProcrustes().fit(x, y)
    u, _, vt = np.linalg.svd(xw.T @ yw)
    for k in (1, 3, 8):
        rotated = xw @ u[:, :k] @ vt[:k]
        assert fitted.scales_[k - 1] == pytest.approx((rotated * yw).sum() / (rotated**2).sum(), rel=1e-9)


def test_truncated_seed_scale_is_too_small() -> None:
    x, y = activations(3, 200, 30, 30)
    fit, seed = ScaledProcrustes().fit(x, y), ScaledProcrustes(scale="seed").fit(x, y)
    assert fit.scales_[0] / seed.scales_[0] > 10  # 30 whitened directions share the denominator
    assert fit.scales_[-1] == pytest.approx(seed.scales_[-1], rel=1e-9)


def test_full_rank_without_shrinkage_is_the_orthogonal_procrustes_of_scipy() -> None:
    x, y = activations(4, 80, 7, 7)
    (wx, _), (wy, colour) = dense_whitening(x, 0.0), dense_whitening(y, 0.0)
    xw, yw = (x - x.mean(0)) @ wx, (y - y.mean(0)) @ wy
    rotation, total = linalg.orthogonal_procrustes(xw, yw)
    expected = total / (xw**2).sum() * xw @ rotation @ colour + y.mean(0)
    np.testing.assert_allclose(ScaledProcrustes(0.0).fit(x, y).predict(x), expected, atol=1e-9 * 100)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
@pytest.mark.parametrize(("n", "d"), [(60, 9), (12, 40)])
def test_whitened_score_equals_dense_whitening(n: int, d: int, shrinkage: float) -> None:
    x, y = activations(5, n, d, d)
    new_x, new_y = activations(6, 9, d, d)
    fitted = ScaledProcrustes(shrinkage, n_components=4).fit(x, y)
    whiten, _ = dense_whitening(y, shrinkage)
    dense = r2((new_y - y.mean(0)) @ whiten, (fitted.predict(new_x) - y.mean(0)) @ whiten)
    assert fitted.score_whitened(new_x, new_y) == pytest.approx(dense, rel=1e-8)


def test_other_shrinkage_needs_no_refit() -> None:
    x, y = activations(7, 14, 33, 33)
    moved = ScaledProcrustes(0.05).fit(x, y).with_shrinkage(0.4)
    np.testing.assert_allclose(moved.predict(x), ScaledProcrustes(0.4).fit(x, y).predict(x), atol=1e-9)


def test_wide_activations_never_meet_a_square_matrix_of_their_width(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decompose, svd = np.linalg.eigh, linalg.svd
    monkeypatch.setattr(np.linalg, "eigh", lambda a: sizes.append(len(a)) or decompose(a))
    monkeypatch.setattr(linalg, "svd", lambda a, **k: sizes.append(max(a.shape)) or svd(a, **k))
    x, y = activations(15, 30, 500, 400)
    ScaledProcrustes().fit(x, y)
    assert len(sizes) == 3
    assert max(sizes) <= 30


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 100)])
def test_planted_rotation_with_scale_is_recovered(n: int, d: int) -> None:
    rng = np.random.default_rng(8)
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    latent, loadings = rng.normal(size=(2 * n, 10)), rng.normal(size=(10, d))
    x = latent @ loadings + 4.0
    y = 2.5 * (x - 4.0) @ rotation - 1.0 + 0.01 * rng.normal(size=(2 * n, d))
    fitted = ScaledProcrustes(0.01).fit(x[:n], y[:n])
    assert fitted.score(x[n:], y[n:]) > 0.98


def test_planted_rank_is_seen_along_the_path() -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=(800, 24))
    y = x[:, :3] @ rng.normal(size=(3, 24)) + 0.05 * rng.normal(size=(800, 24))
    path = ScaledProcrustes().fit(x[:400], y[:400]).rank_path([1, 2, 3, 24])
    scores = [part.score(x[400:], y[400:]) for part in path]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.9
    sigma = path[0].singular_values_
    assert sigma[2] > 2 * sigma[3]


def test_what_a_truncated_map_writes_lies_in_its_output_basis() -> None:
    x, y = activations(10, 12, 30, 30)
    fitted = ScaledProcrustes(n_components=3).fit(x, y)
    basis = fitted.output_basis()
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    written = fitted.predict(activations(11, 5, 30, 30)[0]) - y.mean(0)
    np.testing.assert_allclose(written @ basis @ basis.T, written, atol=1e-10 * np.abs(written).max())


def test_random_rotation_keeps_the_scale_and_loses_the_map() -> None:
    rng = np.random.default_rng(12)
    x = rng.normal(size=(400, 10))
    y = x @ np.linalg.qr(rng.normal(size=(10, 10)))[0]
    fitted = ScaledProcrustes().fit(x, y)
    controls = [fitted.randomised(seed) for seed in range(20)]
    spread = [np.var(c.predict(x), axis=0).sum() for c in controls]
    # rotations of whitened coordinates: the same total variance up to the sides' anisotropy (n = 400)
    np.testing.assert_allclose(spread, np.var(fitted.predict(x), axis=0).sum(), rtol=0.2)
    assert fitted.score(x, y) > 0.99
    assert max(c.score(x, y) for c in controls) < 0.5


def test_unrelated_sides_have_no_validation_r2() -> None:
    positive = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n, d = (30, 60) if seed % 2 else (80, 10)
        x, y = rng.normal(size=(n + 20, d)), rng.normal(size=(n + 20, d))
        positive += ScaledProcrustes().fit(x[:n], y[:n]).score(x[n:], y[n:]) > 0
    assert positive <= 14  # 7 % of 200


def test_a_constant_site_maps_to_the_mean() -> None:
    y = np.random.default_rng(0).normal(size=(9, 4))
    x = np.tile(np.float32([0.1, -300.7, 5e4]), (9, 1)).astype(np.float64)
    fitted = ScaledProcrustes().fit(x, y)
    assert fitted.rank_ == 0
    np.testing.assert_allclose(fitted.predict(x[:2]), np.tile(y.mean(0), (2, 1)))


def test_refusals_say_what_was_wanted() -> None:
    x, y = activations(1, 20, 5, 5)
    with pytest.raises(AnalysisError, match="0 ≤ shrinkage ≤ 1"):
        ScaledProcrustes(1.5).fit(x, y)
    with pytest.raises(AnalysisError, match="'fit' or 'seed'"):
        ScaledProcrustes(scale="both").fit(x, y)
    with pytest.raises(AnalysisError, match="k ≥ 1"):
        ScaledProcrustes().fit(x, y).at_rank(0)
    with pytest.raises(AnalysisError, match=r"joint PCA.*widths 5 and 4"):
        PCAProcrustes(joint=True).fit(x, y[:, :4])


@pytest.mark.parametrize(("n", "d"), [(50, 8), (12, 30)])
@pytest.mark.parametrize("joint", [False, True])
def test_pca_procrustes_equals_scipy_on_pca_scores(n: int, d: int, joint: bool) -> None:
    x, y = activations(13, n, d, d)
    xc, yc, k = x - x.mean(0), y - y.mean(0), 5
    if joint:
        bx = by = np.linalg.svd(np.vstack([xc, yc]) - np.vstack([xc, yc]).mean(0))[2][:k].T
    else:
        bx, by = np.linalg.svd(xc)[2][:k].T, np.linalg.svd(yc)[2][:k].T
    rotation, _ = linalg.orthogonal_procrustes(xc @ bx, yc @ by)
    expected = xc @ bx @ rotation @ by.T + y.mean(0)
    # components are unique up to sign, and a sign cancels between basis and rotation
    np.testing.assert_allclose(PCAProcrustes(k, joint).fit(x, y).predict(x), expected, atol=1e-8)


def test_pca_procrustes_recovers_a_rotation() -> None:
    rng = np.random.default_rng(14)
    x = rng.normal(size=(100, 12)) * np.linspace(3, 1, 12)
    y = x @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + 7.0
    assert PCAProcrustes().fit(x[:60], y[:60]).score(x[60:], y[60:]) > 0.99
