"""Every candidate and score against the plain formulas: full SVDs of dense matrices, explicit projectors."""

from __future__ import annotations

import re

import numpy as np
import pytest
from subspace_dense import BROAD, Dense, K, close, dense_scores
from subspace_inputs import Arrays

from engine.subspaces import numbers as subspace_scores
from engine.subspaces.numbers import REGISTRY, Workspace, prepare, sweep


@pytest.fixture(scope="module", params=[True, False], ids=["gains", "plain"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return Arrays(gains=request.param)


@pytest.fixture(scope="module")
def workspace(arrays: Arrays) -> Workspace:
    return Workspace(arrays.inputs(), BROAD, 8)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_candidate_is_its_definition(name: str, arrays: Arrays, workspace: Workspace) -> None:
    for layer in (2, arrays.layers - 1):
        basis = REGISTRY[name].basis(workspace, layer, K)
        # Through Gram matrices: rounding over the smallest relative gap, here about 1e-3.
        assert close(basis, Dense(arrays, layer).basis(name, K)) < 1e-8


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.nested])
def test_nested_bases_are_columns_of_wider_ones(name: str, arrays: Arrays) -> None:
    wide, narrow = (
        REGISTRY[name].basis(Workspace(arrays.inputs(), BROAD, widest), 2, k)
        for widest, k in ((8, 8), (3, 3))
    )
    assert close(wide[:, :3], narrow) < 1e-8


@pytest.mark.parametrize("dense", [False, True], ids=["factored", "dense"])
def test_scores_are_their_formulas(dense: bool, arrays: Arrays) -> None:
    scores = sweep(arrays.inputs(dense), k=K, broad=BROAD)
    assert not scores.left_out
    for layer in (2,) if dense else (0, 2):
        plain = Dense(arrays, layer)
        clean = plain.basis("layer_clean_resid_pca", K)
        for row, entry in enumerate(scores.candidates):
            basis = plain.basis(entry.name, K)
            assert scores.tables["rank"][row, layer] == basis.shape[1]
            if not basis.shape[1]:
                assert np.isnan(scores.tables["r_act"][row, layer])
                continue
            expected = dense_scores(arrays, layer, basis, clean)
            for name, value in expected.items():
                found = scores.tables[name][row, layer]
                # p-values by a difference from 1 are good to 1e-9 only.
                assert found == pytest.approx(value, rel=1e-7, abs=1e-9), (entry.name, name, layer)
            for name in ("r_specific", "r_o_proj", "r_combined", "cosine"):
                if name not in expected:
                    assert np.isnan(scores.tables[name][row, layer]), (entry.name, name, layer)


@pytest.mark.parametrize("k", [1, 3, 6, 8])
def test_another_rank_takes_columns_and_gives_the_same(k: int, arrays: Arrays) -> None:
    prepared = prepare(arrays.inputs(), widest=8, broad=BROAD)
    prepared.scores(5)
    narrow, anew = prepared.scores(k, clean=3), sweep(arrays.inputs(), k=k, broad=BROAD, clean=3)
    assert narrow.names == anew.names
    for name, table in anew.tables.items():
        np.testing.assert_allclose(narrow.tables[name], table, rtol=1e-6, atol=1e-9, err_msg=name)


def test_summary_is_means_over_changed_layers(arrays: Arrays) -> None:
    scores = sweep(arrays.inputs(), k=K, broad=BROAD)
    assert scores.averaged.tolist() == list(arrays.changed)
    summary = scores.summary()
    row = {name: summary[name][list(summary["candidate"]).index("mlp_write")] for name in summary}
    index, here = scores.names.index("mlp_write"), list(arrays.changed)
    r_act, r_w = (scores.tables[name][index, here].mean() for name in ("r_act", "r_combined"))
    assert row["joint"] == pytest.approx(np.sqrt(r_act * r_w))
    assert row["gap"] == pytest.approx(np.log2(r_act) - np.log2(r_w))
    top = scores.tables["most_combined"][index, here].mean()
    assert row["percent_combined"] == pytest.approx(100 * r_w / top)
    inexact = scores.tables["r_act"][scores.names.index("TaskDiff_lora_ceiling"), here].mean()
    assert row["percent_act_fit"] == pytest.approx(100 * r_act / inexact)
    assert len(set(map(len, summary.values()))) == 1
    assert len(set(map(len, scores.per_layer().values()))) == 1
    narrowed = sweep(arrays.inputs(), k=K, broad=BROAD, layers=[2])
    index = narrowed.names.index("mlp_write")
    assert narrowed.mean("r_act")[index] == pytest.approx(scores.tables["r_act"][index, 2])


def test_there_are_the_44_and_their_companions() -> None:
    assert len(REGISTRY) == 52
    companions = {"qk_circuit_per_head", "qk_and_chars_clusters", "act_ceiling", "dW_o_proj_ceiling"}
    companions |= {"dW_down_proj_ceiling", "dW_combined_ceiling", "qk_circuit_rows", "attn_ov_write_rows"}
    assert companions <= set(REGISTRY)
    assert all(f"`{name}`" in subspace_scores.definitions() for name in REGISTRY)
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in subspace_scores.definitions().splitlines()}
    assert bars == {7}  # six cells in every row: bars of a definition, as in |h|, are escaped


def test_a_union_has_the_rank_of_both_and_rows_are_heads_where_each_query_has_its_key() -> None:
    arrays = Arrays(layers=2, n_kv_heads=4, changed=(1,))
    scores = sweep(arrays.inputs(), k=K, broad=BROAD)
    union = scores.names.index("WNR_union_TaskDiff")
    assert scores.tables["rank"][union].tolist() == [2 * K, 2 * K]
    for one, other in (("qk_circuit", "qk_circuit_rows"), ("attn_ov_write", "attn_ov_write_rows")):
        first, second = (scores.tables["r_act"][scores.names.index(name), 1] for name in (one, other))
        assert first == pytest.approx(second, rel=1e-9)
    isolated = scores.names.index("causally_isolated")
    assert (scores.tables["rank"][isolated] == K).all()  # 8 + 8 + 12 directions leave 20 of 48
