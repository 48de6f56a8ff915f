"""Bases found in the keys' span, structure over blocks, and energy of other weights in Z."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import AnalysisError
from engine.geometry import layers as sl
from engine.geometry import z as sp


def kernels(seed: int = 0, h: int = 6, g: int = 2, d_h: int = 4, d: int = 40) -> sp.HeadKernels:
    rng = np.random.default_rng(seed)
    return sp.head_kernel_svd(rng.normal(size=(h, d_h, d)), rng.normal(size=(g, d_h, d)))


@pytest.mark.parametrize("method", ["blocks", "kernels"])
def test_bases_in_the_span_of_the_keys_are_the_same_bases(method: str) -> None:
    found = kernels()
    right = found.right.astype(np.float32)  # as a store keeps them
    steps: list[tuple[int, int]] = []
    bases = sp.multi_head_bases(
        right,
        found.sigma,
        (1, 4, 2),
        method,  # type: ignore[arg-type]
        kv_heads=2,
        advance=lambda *step: steps.append(step),
    )
    assert list(bases) == [1, 2, 4]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for k, basis in bases.items():
        wanted = sp.multi_head_basis(found.right, found.sigma, k, method)  # type: ignore[arg-type]
        np.testing.assert_allclose(basis, wanted, atol=1e-5)  # float32 factors; signs are the same
    plain = sp.multi_head_bases(right, found.sigma, (4,), method)  # type: ignore[arg-type]
    np.testing.assert_allclose(plain[4], bases[4], atol=1e-5)


def test_heads_without_shared_keys_are_refused() -> None:
    found = kernels(g=6)
    with pytest.raises(AnalysisError, match="do not share their keys"):
        sp.multi_head_bases(found.right, found.sigma, (2,), kv_heads=2)
    with pytest.raises(AnalysisError, match="a divisor of 6"):
        sp.key_frame(found.right, 4)


def test_a_silent_head_does_not_spoil_its_group() -> None:
    rng = np.random.default_rng(0)
    w_q, w_k = rng.normal(size=(4, 3, 30)), rng.normal(size=(2, 3, 30))
    w_q[0] = 0  # the head that stands for its group reads nothing
    w_q[2, 1:] = 0
    found = sp.head_kernel_svd(w_q, w_k)
    lifted = sp.multi_head_bases(found.right, found.sigma, (2,), kv_heads=2)[2]
    np.testing.assert_allclose(lifted, sp.multi_head_basis(found.right, found.sigma, 2), atol=1e-8)


def test_thin_factors_are_as_exact_as_the_dense_kernel() -> None:
    rng = np.random.default_rng(0)
    d, d_h = 512, 32
    w_q, w_k = rng.normal(size=(1, d_h, d)), rng.normal(size=(1, d_h, d))
    found = sp.head_kernel_svd(w_q, w_k)
    dense = np.linalg.svd(w_q[0].T @ w_k[0])[2][:d_h].T
    assert sp.principal_angles(found.right[0], dense).max() < 1e-5


@pytest.mark.parametrize("conditioning", [1.0, 1e3, 1e6, 1e9, np.inf])
def test_kernels_of_badly_scaled_weights_stay_exact(conditioning: float) -> None:
    rng = np.random.default_rng(0)
    scale = (
        np.geomspace(1, 1 / conditioning, 6) if np.isfinite(conditioning) else np.array([1.0] * 3 + [0.0] * 3)
    )
    w_q, w_k = (scale[:, None] * rng.normal(size=(2, 6, 50)) for _ in "qk")
    found = sp.head_kernel_svd(w_q, w_k)
    for i in range(2):
        kernel = w_q[i].T @ w_k[i]
        rebuilt = found.left[i] * found.sigma[i] @ found.right[i].T
        # float64: products of 50 terms relative to the largest entry
        np.testing.assert_allclose(rebuilt, kernel, atol=1e-13 * np.abs(kernel).max() * 50)
        for side in (found.left[i], found.right[i]):
            np.testing.assert_allclose(side.T @ side, np.eye(6), atol=1e-13)


def test_random_weights_have_the_effective_rank_of_drawn_triangles() -> None:
    rng = np.random.default_rng(1)
    direct = [
        sp.effective_rank(
            np.linalg.svd(rng.normal(size=(6, 30)) @ rng.normal(size=(30, 8)) @ rng.normal(size=(8, 30)))[1][
                :6
            ]
        )
        for _ in range(2)
    ]
    assert np.isfinite(direct).all()
    made = sp.effective_rank(
        np.stack(
            [sp.head_kernel_svd(*(rng.normal(size=(1, 6, 30)) for _ in "qk")).sigma[0] for _ in range(400)]
        )
    )
    drawn = sl.random_effective_ranks(30, 6, draws=400)
    spread = np.sqrt(made.var() / 400 + drawn.var() / 400)
    assert made.mean() == pytest.approx(drawn.mean(), abs=float(4 * spread))
    assert made.std() == pytest.approx(drawn.std(), rel=0.2)  # 4 standard errors of a ratio of two sds


def test_variation_over_heads() -> None:
    np.testing.assert_allclose(sl.variation(np.array([[1.0, 3.0], [2.0, 2.0]])), [np.sqrt(2) / 2, 0])
    assert np.isnan(sl.variation(np.zeros((1, 3)))[0])
    assert sl.variation(np.ones((2, 1))).tolist() == [0, 0]


def test_grassmann_p_is_calibrated() -> None:
    d, k, n = 30, 4, 1500
    rng = np.random.default_rng(0)
    frames = np.linalg.qr(rng.normal(size=(2 * n, d, k)))[0]
    found = ((frames[:n].transpose(0, 2, 1) @ frames[n:]) ** 2).sum(axis=(1, 2)) / k
    assert found.mean() == pytest.approx(k / d, rel=0.03)
    rate = float((sl.grassmann_p(found, d, k) < 0.05).mean())
    assert abs(rate - 0.05) < 3 * np.sqrt(0.05 * 0.95 / n) + 0.005  # the Beta tail is within a tenth
    assert sl.grassmann_p(np.array([1.0]), d, k)[0] < 1e-6


def test_order_of_blocks_shows_where_it_is_planted_and_rarely_where_not() -> None:
    first, second = sp.random_basis(200, 5, 0), sp.random_basis(200, 5, 1)
    rng = np.random.default_rng(0)
    planted = np.stack(
        [np.linalg.qr((first if i < 4 else second) + 0.02 * rng.normal(size=(200, 5)))[0] for i in range(9)]
    )
    found = sl.layer_structure(sp.grassmann_matrix(planted), 200, 5)
    assert (found.boundary, found.least) == (3, 3)
    neighbours = np.diagonal(sp.grassmann_matrix(planted), 1)
    assert found.drop == pytest.approx(neighbours[2] - neighbours[3])
    assert found.unrelated == (3,)
    matrix = sp.grassmann_matrix(planted)
    rng = np.random.default_rng(4)  # the null again, one order after another
    orders = [rng.permutation(9) for _ in range(50)]
    gaps = [sp.adjacent_minus_distant(matrix[np.ix_(order, order)]) for order in orders]
    again = sl.layer_structure(matrix, 200, 5, draws=50, seed=4)
    assert again.p_gap == (1 + sum(g >= again.gap - 1e-12 for g in gaps)) / 51
    assert found.p_gap < 0.02
    hits = 0
    for seed in range(200):
        bases = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 40, 3)))[0]
        hits += sl.layer_structure(sp.grassmann_matrix(bases), 40, 3, draws=99, seed=seed).p_gap < 0.05
    assert hits / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_energy_from_a_small_gram_equals_the_dense_energy() -> None:
    found, rng = kernels(), np.random.default_rng(5)
    weight = rng.normal(size=(70, 40))
    frame = sp.key_frame(found.right, 2)
    small = ((weight @ frame).T @ (weight @ frame)).astype(np.float32)
    for k in (1, 3):
        for basis in (
            sp.multi_head_basis(found.right, found.sigma, k),
            sp.multi_head_basis(found.right, found.sigma, k, "kernels"),
            found.right[3][:, :k],
        ):
            dense = float(((weight @ basis) ** 2).sum())
            assert sl.energy_in(basis, small, frame).sum() == pytest.approx(dense, rel=1e-5)  # float32 Gram
            assert sl.energy_in(basis, weight.T @ weight).sum() == pytest.approx(dense, rel=1e-12)
    with pytest.raises(AnalysisError, match="not inside the frame"):
        sl.energy_in(sp.random_basis(40, 2, 0), small, frame)


def test_alignment_is_calibrated_and_finds_a_plant() -> None:
    rng, d, k, hits = np.random.default_rng(0), 24, 3, 0
    weight = rng.normal(size=(60, d)) * np.linspace(0.2, 2.0, d)
    gram = weight.T @ weight
    totals = np.array([np.trace(gram)]), np.array([(gram**2).sum()])
    for seed in range(600):
        energy = sl.energy_in(sp.random_basis(d, k, seed), gram).sum(keepdims=True)
        hits += sl.weight_alignment(energy, *totals, d, k).p[0] < 0.05
    assert abs(hits / 600 - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 600)
    top = np.linalg.eigh(gram)[1][:, -k:]
    found = sl.weight_alignment(sl.energy_in(top, gram).sum(keepdims=True), *totals, d, k)
    assert found.p[0] < 1e-3
    assert found.ratio[0] == pytest.approx(((weight @ top) ** 2).sum() / (weight**2).sum() * d / k)
    none = sl.weight_alignment(np.zeros(1), np.array([np.nan]), np.array([np.nan]), d, k)
    assert np.isnan(none.ratio[0])
    assert np.isnan(none.p[0])
