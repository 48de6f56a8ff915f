"""The analyses against scikit-learn, SciPy and TransformerLens."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import KernelCenterer

from engine.geometry import z as sp
from engine.similarity import cka
from engine.stats.means import bootstrap_means, bootstrap_ratios

pytestmark = pytest.mark.reference


def test_centring_equals_scikit_learns_kernel_centerer() -> None:
    x = np.random.default_rng(0).normal(size=(30, 12)) + 5
    raw = x @ x.T
    centred = KernelCenterer().fit_transform(raw.copy())
    np.testing.assert_allclose(cka.centre(raw), centred, atol=1e-10)
    np.testing.assert_allclose(cka.gram(x), centred, atol=1e-10)


def test_biased_cka_is_the_cosine_of_centred_kernels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 40)), rng.normal(size=(25, 7))
    k, m = (KernelCenterer().fit_transform(v @ v.T).ravel() for v in (x, y))
    assert cka.linear_cka(x, y) == pytest.approx(k @ m / np.linalg.norm(k) / np.linalg.norm(m), rel=1e-12)


def test_bootstrap_errors_equal_scipys() -> None:
    """The standard error of the resamples; the interval's ends are studentised, which SciPy doesn't do."""
    rng = np.random.default_rng(0)
    top, bottom = rng.lognormal(size=120), rng.lognormal(size=120) + 1

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.mean(axis=axis) / b.mean(axis=axis)

    drawn = stats.bootstrap((top,), np.mean, n_resamples=5000, method="percentile", rng=1)
    # two independent sets of 5000 resamples: each error carries about 1 %
    assert float(bootstrap_means(top, n_boot=5000).se) == pytest.approx(drawn.standard_error, rel=0.05)
    paired = stats.bootstrap(
        (top, bottom), ratio, paired=True, vectorized=True, n_resamples=5000, method="percentile", rng=1
    )
    ours = bootstrap_ratios(top, bottom, n_boot=5000)
    assert float(ours.se) == pytest.approx(paired.standard_error, rel=0.05)


def test_grassmann_similarity_equals_scipys_angles() -> None:
    a, b = sp.random_basis(30, 5, 0), sp.random_basis(30, 5, 1)
    angles = linalg.subspace_angles(a, b)
    assert sp.grassmann_similarity(a, b) == pytest.approx((np.cos(angles) ** 2).mean())


def test_kernel_basis_equals_truncated_svd_of_the_stacked_kernels() -> None:
    rng = np.random.default_rng(0)
    w_q, w_k = rng.normal(size=(4, 5, 24)), rng.normal(size=(2, 5, 24))
    found = sp.head_kernel_svd(w_q, w_k)
    stacked = np.concatenate([w_q[i].T @ w_k[i // 2] for i in range(4)])  # (h·d, d): its Gram is Σ KᵀK
    theirs = TruncatedSVD(6, algorithm="arpack", random_state=0).fit(stacked).components_.T
    ours = sp.multi_head_basis(found.right, found.sigma, 6, "kernels")
    assert sp.grassmann_similarity(ours, theirs) == pytest.approx(1.0, abs=1e-8)


def test_head_kernels_equal_transformer_lens_factored_matrices() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformer_lens import FactoredMatrix
    rng = np.random.default_rng(0)
    w_q, w_k = rng.normal(size=(3, 4, 16)), rng.normal(size=(3, 4, 16))
    theirs = FactoredMatrix(torch.tensor(w_q).transpose(1, 2), torch.tensor(w_k))
    _, sigma, right = theirs.svd()
    found = sp.head_kernel_svd(w_q, w_k)
    np.testing.assert_allclose(found.sigma, sigma.numpy(), rtol=1e-9)
    for i in range(3):
        assert sp.grassmann_similarity(found.right[i, :, :2], right[i, :, :2].numpy()) == pytest.approx(1.0)
