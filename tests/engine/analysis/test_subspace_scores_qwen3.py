"""Every candidate and score on a real small Qwen3 with grouped-query attention, by the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from qwen3_inputs import CHANGED, Qwen3Arrays
from subspace_dense import BROAD, Dense, K, close, dense_scores

from engine.subspaces.numbers import REGISTRY, Workspace, sweep

TENSORS = ("o_proj", "down_proj")


@pytest.fixture(scope="module")
def arrays() -> Qwen3Arrays:
    return Qwen3Arrays()


@pytest.fixture(scope="module")
def workspace(arrays: Qwen3Arrays) -> Workspace:
    return Workspace(arrays.inputs(), BROAD, 8)


def test_the_model_is_what_is_meant(arrays: Qwen3Arrays) -> None:
    config = arrays.model.config
    assert (config.model_type, config.num_attention_heads, config.num_key_value_heads) == ("qwen3", 4, 2)
    assert [layer for layer in range(5) if np.abs(arrays.held["label"][layer]).max() > 0] == [1, 2, 3, 4]
    for layer in range(5):  # own heads and tokens: right-aligned, the last one is the decision token
        tokens = arrays.held["positive_tokens"][layer]
        np.testing.assert_array_equal(tokens[:, -1], arrays.held["positive"][layer])
        np.testing.assert_allclose(arrays.held["positive_attention"][layer].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_candidate_is_its_definition(name: str, arrays: Qwen3Arrays, workspace: Workspace) -> None:
    for layer in range(arrays.layers):
        if name in ("act_ceiling", "TaskDiff_lora_ceiling") and layer < CHANGED[0]:
            continue  # the label is zero there
        basis = REGISTRY[name].basis(workspace, layer, K)
        assert close(basis, Dense(arrays, layer).basis(name, K)) < 1e-7, layer


@pytest.mark.parametrize("dense", [False, True], ids=["factored", "dense"])
def test_scores_are_their_formulas(dense: bool, arrays: Qwen3Arrays) -> None:
    scores = sweep(arrays.inputs(dense), k=K, broad=BROAD)
    assert not scores.left_out
    assert scores.averaged.tolist() == list(CHANGED)
    compared = 0
    for layer in (CHANGED[0], CHANGED[1], 4):
        plain = Dense(arrays, layer)
        clean = plain.basis("layer_clean_resid_pca", K)
        for row, entry in enumerate(scores.candidates):
            basis = plain.basis(entry.name, K)
            assert scores.tables["rank"][row, layer] == basis.shape[1]
            if not basis.shape[1]:
                continue
            for name, value in dense_scores(arrays, layer, basis, clean).items():
                found = scores.tables[name][row, layer]
                assert found == pytest.approx(value, rel=1e-6, abs=1e-9), (entry.name, name, layer)
                compared += 1
    assert compared > 2500


@pytest.mark.parametrize("k", [1, 3, 4, 8])
def test_ceilings_are_never_exceeded_and_reach_all_of_their_own(k: int, arrays: Qwen3Arrays) -> None:
    scores = sweep(arrays.inputs(), k=k, broad=BROAD)
    here = list(CHANGED)
    exact = {
        "act": "act_ceiling",
        "o_proj": "dW_o_proj_ceiling",
        "down_proj": "dW_down_proj_ceiling",
        "combined": "dW_combined_ceiling",
    }
    for which, ceiling in exact.items():
        ratio = scores.tables[f"r_{which}"][:, here] / scores.tables[f"most_{which}"][:, here]
        assert np.nanmax(ratio) < 1 + 1e-9
        np.testing.assert_allclose(ratio[scores.names.index(ceiling)], 1)
        assert scores.percent(which)[scores.names.index(ceiling)] == pytest.approx(100)
    whole = {"o_proj": 3, "down_proj": 3, "combined": 6}  # the ranks of the change
    for which, rank in whole.items():
        if rank <= k:
            row = scores.names.index(exact[which])
            np.testing.assert_allclose(scores.tables[f"r_{which}"][row, here], arrays.d / rank)
            np.testing.assert_allclose(scores.ceiling(which)[here], arrays.d / k)
