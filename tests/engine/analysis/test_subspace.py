"""Head kernels and their subspaces against explicit d × d matrices."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import AnalysisError
from engine.geometry import z as sp


def weights(
    seed: int = 0, h: int = 6, g: int = 2, d_h: int = 4, d: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(h, d_h, d)).astype(np.float32), rng.normal(size=(g, d_h, d)).astype(np.float32)


def full_kernels(w_q: np.ndarray, w_k: np.ndarray) -> np.ndarray:
    """(h, d, d), grouped-query expansion by repetition, as attention itself does it."""
    keys = np.repeat(w_k.astype(np.float64), w_q.shape[0] // w_k.shape[0], axis=0)
    return np.einsum("hid,hie->hde", w_q.astype(np.float64), keys)


@pytest.mark.parametrize("gains", [False, True])
def test_thin_svd_equals_the_svd_of_the_full_kernel(gains: bool) -> None:
    w_q, w_k = weights()
    rng = np.random.default_rng(1)
    extra = {"input_gain": rng.random(20), "q_gain": rng.random(4), "k_gain": rng.random(4)} if gains else {}
    found = sp.head_kernel_svd(w_q, w_k, **extra)
    if gains:
        w_q = w_q * extra["q_gain"][:, None] * extra["input_gain"]
        w_k = w_k * extra["k_gain"][:, None] * extra["input_gain"]
    kernels = full_kernels(w_q, w_k)
    for i, kernel in enumerate(kernels):
        np.testing.assert_allclose(found.sigma[i], np.linalg.svd(kernel)[1][:4], rtol=1e-6)
        rebuilt = found.left[i] * found.sigma[i] @ found.right[i].T
        np.testing.assert_allclose(rebuilt, kernel, atol=1e-5)
        np.testing.assert_allclose(found.right[i].T @ found.right[i], np.eye(4), atol=1e-12)
        np.testing.assert_allclose(found.left[i].T @ found.left[i], np.eye(4), atol=1e-12)


def test_a_rank_deficient_head_is_reported_by_its_singular_values() -> None:
    w_q, w_k = weights()
    w_q[0, 2:] = 0
    w_q[1] = 0
    found = sp.head_kernel_svd(w_q, w_k)
    assert (found.sigma[0, 2:] < 1e-6 * found.sigma[0, 0]).all()
    assert not found.sigma[1].any()
    ranks = sp.effective_rank(found.sigma)
    assert 1 <= ranks[0] <= 2
    assert ranks[1] == 0


def test_effective_rank_of_known_spectra() -> None:
    np.testing.assert_allclose(sp.effective_rank(np.eye(3)), 1.0)
    assert sp.effective_rank(np.full(7, 0.3)) == pytest.approx(7.0)
    p = np.array([0.5, 0.25, 0.25])
    assert sp.effective_rank(8 * p) == pytest.approx(2**1.5)  # entropy 1.5 bits


def test_blocks_basis_equals_the_stacked_svd() -> None:
    found = sp.head_kernel_svd(*weights())
    for k in (1, 2, 4):
        stacked = np.concatenate([r[:, :k].T for r in found.right])  # (h·k, d), as the original does
        expected = np.linalg.svd(stacked)[2][:k].T
        basis = sp.multi_head_basis(found.right, found.sigma, k)
        assert sp.grassmann_similarity(basis, expected) == pytest.approx(1.0, abs=1e-10)
        np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-10)


@pytest.mark.parametrize("d", [20, 60])  # more columns than dimensions, and fewer
def test_kernels_basis_equals_the_summed_eigenvectors_and_is_nested(d: int) -> None:
    w_q, w_k = weights(d=d)
    found = sp.head_kernel_svd(w_q, w_k)
    summed = sum(k.T @ k for k in full_kernels(w_q, w_k))
    vectors = np.linalg.eigh(summed)[1][:, ::-1]
    wide = sp.multi_head_basis(found.right, found.sigma, 7, "kernels")
    for k in (1, 3, 7):
        assert sp.grassmann_similarity(wide[:, :k], vectors[:, :k]) == pytest.approx(1.0, abs=1e-8)
        narrow = sp.multi_head_basis(found.right, found.sigma, k, "kernels")
        np.testing.assert_allclose(narrow, wide[:, :k], atol=1e-8)  # signs are fixed too


def test_blocks_basis_is_not_nested() -> None:
    found = sp.head_kernel_svd(*weights(d=40))
    two, three = (sp.multi_head_basis(found.right, found.sigma, k) for k in (2, 3))
    assert sp.grassmann_similarity(two, three) < 0.999


def test_planted_shared_direction_is_found_and_random_heads_share_nothing() -> None:
    rng = np.random.default_rng(0)
    w_q, w_k = weights(h=8, g=8, d_h=4, d=200)
    shared = np.linalg.qr(rng.normal(size=(200, 1)))[0][:, 0]
    w_k[:, 0] = 60 * shared
    found = sp.head_kernel_svd(w_q, w_k)
    for method in ("blocks", "kernels"):
        basis = sp.multi_head_basis(found.right, found.sigma, 1, method)
        assert abs(basis[:, 0] @ shared) > 0.95
    bases = [sp.random_basis(200, 8, s) for s in range(60)]
    similar = [sp.grassmann_similarity(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
    assert np.mean(similar) == pytest.approx(8 / 200, abs=float(4 * np.std(similar) / np.sqrt(30)))


def test_angles_similarity_and_projectors() -> None:
    a = np.eye(6)[:, :2]
    b = np.stack([np.cos(0.3) * np.eye(6)[0] + np.sin(0.3) * np.eye(6)[3], np.eye(6)[4]], axis=1)
    np.testing.assert_allclose(sp.principal_angles(a, b), [0.3, np.pi / 2])
    assert sp.grassmann_similarity(a, b) == pytest.approx(np.cos(0.3) ** 2 / 2)
    tiny = np.stack([np.cos(1e-9) * a[:, 0] + np.sin(1e-9) * np.eye(6)[3], a[:, 1]], axis=1)
    assert sp.principal_angles(a, tiny)[-1] == pytest.approx(1e-9, rel=1e-6)  # arccos would give 0
    x = np.random.default_rng(0).normal(size=(3, 4, 6))
    projector = b @ b.T
    np.testing.assert_allclose(sp.project(x, b), x @ projector, atol=1e-12)
    matrix = sp.grassmann_matrix(np.stack([a, b, a]))
    assert matrix[0, 1] == pytest.approx(sp.grassmann_similarity(a, b))
    np.testing.assert_allclose(np.diagonal(matrix), 1.0)


def test_layer_structure_is_read_from_the_similarity_matrix() -> None:
    first, second = sp.random_basis(300, 5, 0), sp.random_basis(300, 5, 1)
    rng = np.random.default_rng(0)
    bases = np.stack(
        [np.linalg.qr((first if i < 4 else second) + 0.02 * rng.normal(size=(300, 5)))[0] for i in range(10)]
    )
    matrix = sp.grassmann_matrix(bases)
    assert sp.phase_boundary(matrix)[0] == 3
    assert sp.adjacent_minus_distant(matrix) > 0.5
    scattered = sp.grassmann_matrix(np.stack([sp.random_basis(300, 5, s) for s in range(12)]))
    assert abs(sp.adjacent_minus_distant(scattered)) < 0.05


def test_the_boundary_of_phases_is_the_largest_drop_not_the_smallest_similarity() -> None:
    """Neighbours 0.9, 0.4, 0.35, 0.3: least alike are 3 and 4, but similarity falls off between 1 and 2."""
    matrix = np.eye(5)
    for i, value in enumerate((0.9, 0.4, 0.35, 0.3)):
        matrix[i, i + 1] = matrix[i + 1, i] = value
    assert sp.phase_boundary(matrix) == (1, pytest.approx(0.5))
    rising = np.eye(4) + np.diag([0.2, 0.5, 0.8], 1)
    assert sp.phase_boundary(rising)[1] < 0


def test_random_basis_is_seeded_orthonormal_and_uniform() -> None:
    np.testing.assert_array_equal(sp.random_basis(9, 3, 5), sp.random_basis(9, 3, 5))
    energy = [float((sp.random_basis(9, 3, s)[0] ** 2).sum()) for s in range(900)]
    assert np.mean(energy) == pytest.approx(3 / 9, abs=float(4 * np.std(energy) / 30))


def test_bad_input_is_refused_with_its_reason() -> None:
    w_q, w_k = weights()
    found = sp.head_kernel_svd(w_q, w_k)
    flat = np.zeros_like(found.sigma)
    flat[0, 0] = 1.0
    for call, says in (
        (lambda: sp.head_kernel_svd(w_q[:5], w_k), "h a multiple of g"),
        (lambda: sp.multi_head_basis(found.right, found.sigma, 5), "1 ≤ k ≤ d_h = 4"),
        (lambda: sp.multi_head_basis(found.right, flat, 2), "too few directions"),
        (lambda: sp.multi_head_basis(found.right, found.sigma, 17, "kernels"), "k = 17"),
        (lambda: sp.multi_head_basis(found.right, found.sigma, 2, "both"), "'both'"),  # type: ignore[arg-type]
        (lambda: sp.random_basis(3, 4, 0), "k = 4"),
        (lambda: sp.check_basis(np.ones((4, 2))), "Orthonormalise"),
        (lambda: sp.check_basis(np.eye(4)[:, :2], 5), "columns of length 5"),
        (lambda: sp.phase_boundary(np.ones((2, 2))), "at least 3 layers"),
        (lambda: sp.adjacent_minus_distant(np.ones((2, 2))), "at least 3 layers"),
    ):
        with pytest.raises(AnalysisError) as caught:
            call()
        assert says in str(caught.value)
