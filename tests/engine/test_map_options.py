"""Forms of maps beside the usual ones: each by a formula written out, and none changes what was stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.errors import PatchError
from engine.patching.mapped_spec import MappedPatch
from engine.transport import DEFAULT_ALPHAS, LogitSubspaceRidge, PCAProcrustes, ScaledProcrustes, penalty_path
from engine.transport.named import MapSpec

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 6)) * [3, 2, 1, 1, 1, 0.5] + 1.0
Y = X @ RNG.normal(size=(6, 6)) + 0.1 * RNG.normal(size=(40, 6))
PLACE = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 4}


def test_a_setting_that_came_later_is_written_only_where_it_is_used() -> None:
    usual = MappedPatch(**PLACE, map=MapSpec(scale="fit", joint=False, penalty_from=0.01))
    assert set(usual.to_json()["map"]) == {
        "method",
        "rank",
        "shrinkage",
        "penalty",
        "directions",
        "clusters",
    }
    other = MappedPatch(**PLACE, map=MapSpec(rank=2, scale="seed"))
    assert other.to_json()["map"]["scale"] == "seed"
    assert other.content_hash("f") != MappedPatch(**PLACE, map=MapSpec(rank=2)).content_hash("f")
    assert MappedPatch.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_what_a_map_does_not_have_is_not_in_it() -> None:
    assert MapSpec(method="RidgeTransport", scale="seed", joint=True) == MapSpec(method="RidgeTransport")
    named = {"method": "RidgeTransport", "penalty": 3.0}
    assert MapSpec(**named, penalty_from=1e-6) == MapSpec(**named)


def test_the_seed_scale_divides_by_the_whole_source() -> None:
    spec = MapSpec(rank=2, shrinkage=0.0, scale="seed")
    fitted = spec.build().fit(X, Y)
    usual = MapSpec(rank=2, shrinkage=0.0).build().fit(X, Y)
    assert isinstance(fitted, ScaledProcrustes)
    # whitened without shrinkage, the source's energy is n − 1 in each of its 6 directions
    shrunk = (fitted.predict(X) - Y.mean(0)) / (usual.predict(X) - Y.mean(0))
    np.testing.assert_allclose(shrunk, 2 / 6, rtol=1e-9)
    assert spec.describe().endswith("γ = 0, scaled by the whole source")


def test_the_path_of_penalties_goes_as_far_down_as_asked() -> None:
    assert penalty_path(1e-2) == DEFAULT_ALPHAS
    assert penalty_path(1.0) == DEFAULT_ALPHAS[6:]
    np.testing.assert_allclose(penalty_path(1e-6), np.logspace(-6, 6, 37), rtol=1e-12)
    spec = MapSpec(method="RidgeTransport", penalty_from=1e-6)
    assert spec.penalties[0] == pytest.approx(1e-6)
    exact = X @ RNG.normal(size=(6, 6))  # the less penalty, the better
    assert spec.build().fit(X, exact).alpha_ == pytest.approx(1e-6)
    assert MapSpec(method="RidgeTransport").build().fit(X, exact).alpha_ == 1e-2
    assert spec.describe() == "ridge, λ by leave-one-out, from 1e-06"
    assert (
        MapSpec(method="RidgeTransport", penalty_from=5.0).describe().endswith(", from 10")
    )  # not 5: 4.6, 10, …


def stacked_basis(k: int, *parts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.svd(np.vstack(parts))[2][:k].T


def test_a_joint_logit_subspace_is_of_both_unembeddings_stacked() -> None:
    target, source = RNG.normal(size=(20, 6)), 3 * RNG.normal(size=(30, 6))
    gain, source_gain = np.linspace(0.5, 2, 6), np.linspace(3, 1, 6)
    spec = MapSpec(method="LogitSubspaceRidge", directions=2, joint=True)
    fitted = spec.build(lambda: (target, gain), 0, lambda: (source, source_gain)).fit(X, Y)
    assert isinstance(fitted, LogitSubspaceRidge)
    wanted = stacked_basis(2, target * gain, source * source_gain)
    np.testing.assert_allclose(fitted.basis_ @ fitted.basis_.T, wanted @ wanted.T, atol=1e-10)
    alone = stacked_basis(2, target * gain)
    assert np.abs(wanted @ wanted.T - alone @ alone.T).max() > 0.1
    with pytest.raises(PatchError, match="a joint one the source's as well"):
        spec.build(lambda: (target, gain))


def test_joint_components_are_of_both_sides_rows() -> None:
    fitted = MapSpec(method="PCAProcrustes", rank=2, joint=True).build().fit(X, Y)
    assert isinstance(fitted, PCAProcrustes)
    basis = stacked_basis(2, X - X.mean(0), Y - Y.mean(0))
    left, right = (X - X.mean(0)) @ basis, (Y - Y.mean(0)) @ basis
    u, _, vt = np.linalg.svd(left.T @ right)
    np.testing.assert_allclose(fitted.predict(X), Y.mean(0) + left @ u @ vt @ basis.T, atol=1e-9)
