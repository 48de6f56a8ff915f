"""Maps leave as arrays and JSON and come back the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.base import clone

from engine.errors import AnalysisError
from engine.transport import (
    TRANSPORTS,
    ClusteredTransport,
    Identity,
    LogitSubspaceRidge,
    MeanShift,
    MomentMatching,
    PCAProcrustes,
    RidgeTransport,
    ScaledProcrustes,
    TransportMap,
    export_map,
    import_map,
    register_transport,
)

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(60, 6)), RNG.normal(size=(8, 6))
Y = X @ RNG.normal(size=(6, 6)) + 2.0
MAPS: list[TransportMap] = [
    Identity(),
    MeanShift(),
    MomentMatching(),
    RidgeTransport((0.5, 5.0)),
    PCAProcrustes(3),
    ScaledProcrustes(n_components=4),
    LogitSubspaceRidge(RNG.normal(size=(20, 6)), 3),
    ClusteredTransport(ScaledProcrustes(), n_clusters=3, min_size=18),
]


@pytest.mark.parametrize("estimator", MAPS, ids=lambda m: type(m).__name__)
def test_round_trip_through_json_and_safetensors(estimator: TransportMap) -> None:
    estimator.fit(X, Y)
    description, arrays = export_map(estimator)
    back = import_map(json.loads(json.dumps(description)), load(save(arrays)) if arrays else {})
    np.testing.assert_array_equal(back.predict(NEW), estimator.predict(NEW))
    assert back.score(X, Y) == estimator.score(X, Y)


def test_every_known_map_is_covered() -> None:
    assert {type(m).__name__ for m in MAPS} == set(TRANSPORTS)


def test_a_loaded_map_moves_along_its_path_but_not_to_another_shrinkage() -> None:
    fitted = ScaledProcrustes().fit(X, Y)
    back = import_map(*export_map(fitted))
    assert isinstance(back, ScaledProcrustes)
    np.testing.assert_array_equal(back.at_rank(2).predict(NEW), fitted.at_rank(2).predict(NEW))
    assert back.score_whitened(X, Y) == fitted.score_whitened(X, Y)
    with pytest.raises(AnalysisError, match="loaded from a file"):
        back.with_shrinkage(0.2)
    ridge = import_map(*export_map(RidgeTransport().fit(X, Y)))
    assert isinstance(ridge, RidgeTransport)
    np.testing.assert_array_equal(ridge.score_path(X, Y), RidgeTransport().fit(X, Y).score_path(X, Y))


def test_a_loaded_clustered_map_remembers_its_base_map() -> None:
    fitted = ClusteredTransport(ScaledProcrustes(0.3, n_components=2), n_clusters=2).fit(X, Y)
    back = import_map(*export_map(fitted))
    np.testing.assert_array_equal(clone(back).fit(X, Y).predict(NEW), fitted.predict(NEW))


def test_a_loaded_logit_map_asks_for_the_unembedding_to_fit_again() -> None:
    back = import_map(*export_map(LogitSubspaceRidge(np.eye(6), 2).fit(X, Y)))
    with pytest.raises(AnalysisError, match="needs the unembedding"):
        clone(back).fit(X, Y)


def test_damage_is_named() -> None:
    description, arrays = export_map(MeanShift().fit(X, Y))
    with pytest.raises(AnalysisError, match=r"missing.*source_mean_"):
        import_map(description, {})
    with pytest.raises(AnalysisError, match=r"isn't known here.*Given: Elsewhere"):
        import_map({**description, "map": "Elsewhere"}, arrays)
    with pytest.raises(AnalysisError, match=r"Expected: format 1\. Given: 9"):
        import_map({**description, "format": 9}, arrays)
    with pytest.raises(AnalysisError, match="name already"):
        register_transport(MeanShift)
