from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine.errors import ModelError
from engine.models.low_rank import MAX_RANK, low_rank_factors
from engine.stats.spectra import uneven_edge
from engine.weights.deltas import WeightDelta, difference, random_like, weight_deltas
from engine.weights.edge import edge
from engine.weights.names import unmatched


def planted(out: int, width: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator) @ torch.randn(rank, width, generator=generator)


@pytest.mark.parametrize("rank", [1, 4, 31])
def test_planted_rank_is_found_and_the_product_is_the_delta(rank: int) -> None:
    delta = planted(96, 160, rank)
    factors = low_rank_factors(delta)
    assert factors is not None
    left, right, error = factors
    assert left.shape == (96, rank)
    assert right.shape == (rank, 160)
    # float32 products of these sizes round at about 1e-6 relative.
    assert torch.linalg.norm(left @ right - delta) / torch.linalg.norm(delta) < 1e-5
    assert error < 1e-3


def test_stated_error_is_the_true_error() -> None:
    delta = planted(80, 80, 4) + 2e-4 * planted(80, 80, 80, seed=1)
    factors = low_rank_factors(delta)
    assert factors is not None
    left, right, error = factors
    true = float(torch.linalg.norm((left @ right - delta).double()) / torch.linalg.norm(delta.double()))
    assert error == pytest.approx(true, rel=1e-2)
    assert error > 1e-5


def test_a_full_rank_delta_gets_no_factors() -> None:
    assert low_rank_factors(planted(200, 200, MAX_RANK + 40)) is None
    assert low_rank_factors(torch.randn(200, 150, generator=torch.Generator().manual_seed(3))) is None


def test_only_what_changed_is_listed() -> None:
    base = tiny("qwen3")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.o_proj.weight += 0.1 * planted(32, 64, 2)
        tuned.model.layers[2].input_layernorm.weight += 0.5
    found = {delta.name: delta for delta in weight_deltas(base, tuned)}
    assert list(found) == [
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.2.input_layernorm.weight",
    ]
    o_proj = found["model.layers.1.self_attn.o_proj.weight"]
    assert o_proj.rank == 2
    assert o_proj.left is not None
    assert o_proj.right is not None
    np.testing.assert_allclose(
        o_proj.left @ o_proj.right, 0.1 * planted(32, 64, 2).numpy(), atol=1e-5, err_msg="float32 rounding"
    )
    norm = found["model.layers.2.input_layernorm.weight"]
    assert norm.rank is None
    assert norm.norm == pytest.approx(0.5 * 32**0.5)
    assert list(weight_deltas(base, base)) == []


def test_a_narrower_base_hides_no_difference() -> None:
    base = tiny("qwen3").to(torch.bfloat16)
    tuned = copy.deepcopy(base).float()
    with torch.no_grad():
        tuned.model.layers[1].self_attn.o_proj.weight *= 1 + 2.0**-12  # rounds away in bfloat16
    names = [delta.name for delta in weight_deltas(base, tuned)]
    assert names == ["model.layers.1.self_attn.o_proj.weight"]


def test_a_difference_too_full_for_factors_is_kept_dense_with_its_spectrum() -> None:
    base = tiny("qwen3")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += planted(48, 32, 32) * 0.01
    (found,) = weight_deltas(base, tuned)
    assert (found.rank, found.left, found.error) == (None, None, 0.0)
    delta = (tuned.model.layers[0].mlp.up_proj.weight - base.model.layers[0].mlp.up_proj.weight).numpy()
    np.testing.assert_array_equal(found.matrix(), delta)
    assert found.spectrum is not None
    # A Gram in float64 squares the condition number: values near 0 keep half of its digits.
    np.testing.assert_allclose(found.spectrum, np.linalg.svd(delta, compute_uv=False), atol=1e-6)
    assert found.effective_rank is not None
    assert 1 < found.effective_rank < 32
    rows, columns = (delta.astype(np.float64) ** 2).sum(axis=1), (delta.astype(np.float64) ** 2).sum(axis=0)
    assert edge(found) == pytest.approx(uneven_edge(rows, columns))


def test_the_edge_of_factors_is_that_of_their_product() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((30, 3), (3, 50)))
    spectrum = np.linalg.svd(left @ right, compute_uv=False)[:3]
    delta = WeightDelta("w", (30, 50), 1.0, 1.0, 3, 0.0, left=left, right=right, spectrum=spectrum)
    dense = replace(delta, left=None, right=None, dense=left @ right)
    assert edge(delta) == pytest.approx(edge(dense), rel=1e-4)
    assert edge(replace(dense, spectrum=None)) is None


def test_bfloat16_weights_say_what_their_rounding_costs() -> None:
    base = tiny("qwen3").to(torch.bfloat16)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += 0.01 * planted(48, 32, 32).bfloat16()
    (found,) = weight_deltas(base, tuned)
    assert found.half
    rounded = torch.from_numpy(found.matrix()).bfloat16().float().numpy()
    true = np.linalg.norm(rounded - found.matrix()) / found.norm
    assert found.error == pytest.approx(true, rel=1e-5)
    assert found.error <= 2.0**-8  # half a unit of 8 bits


def test_what_cannot_be_compared_is_named() -> None:
    base, tied = tiny("llama"), tiny("qwen3")
    more = tiny("llama", vocab_size=103)
    found = unmatched(base, more)
    assert found["model.embed_tokens.weight"] == "shape (103, 32) instead of (101, 32)"
    assert set(found) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert unmatched(base, base) == {}
    untied = tiny("qwen3", tie_word_embeddings=False)
    assert unmatched(tied, untied) == {"lm_head.weight": "tied to another one in the first model"}
    assert unmatched(untied, tied) == {"lm_head.weight": "missing"}


@pytest.mark.parametrize("side", [0, 1])
def test_weights_that_are_not_finite_are_refused_by_name(side: int) -> None:
    models = [tiny("qwen3"), tiny("qwen3", seed=1)]
    with torch.no_grad():
        models[side].model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is not finite"):
        list(weight_deltas(*models))


def fake(name: str, matrix: torch.Tensor, *, factored: bool) -> WeightDelta:
    norm = float(matrix.norm())
    factors = low_rank_factors(matrix)
    if factored and factors is not None:
        left, right = factors[0].numpy(), factors[1].numpy()
        return WeightDelta(name, tuple(matrix.shape), norm, 0.1, left.shape[1], 0.0, left, right)
    return WeightDelta(name, tuple(matrix.shape), norm, 0.1, None, 0.0, dense=matrix.numpy())


def test_a_contrast_is_positive_minus_negative_and_stays_factored() -> None:
    one, two = planted(96, 160, 3), planted(96, 160, 2, seed=5)
    dense = planted(40, 40, 40, seed=7)
    positive = [
        fake("a", one, factored=True),
        fake("b", dense, factored=False),
        fake("same", one, factored=True),
    ]
    negative = [
        fake("a", two, factored=True),
        fake("c", two, factored=True),
        fake("same", one, factored=True),
    ]
    found = {delta.name: delta for delta in difference(positive, negative)}
    assert set(found) == {"a", "b", "c"}
    assert found["a"].rank == 5
    # float32 products of this size round at about 1e-6 of the norm
    np.testing.assert_allclose(found["a"].matrix(), (one - two).numpy(), atol=1e-5 * float(one.norm()))
    np.testing.assert_array_equal(found["b"].matrix(), dense.numpy())
    np.testing.assert_allclose(found["c"].matrix(), -two.numpy(), atol=1e-5 * float(two.norm()))
    assert found["a"].relative == pytest.approx(0.1 * float((one - two).norm()) / float(one.norm()), rel=1e-5)
    with pytest.raises(ModelError, match="different shapes"):
        difference([fake("a", one, factored=True)], [fake("a", dense, factored=False)])


def test_random_differences_have_the_same_norms_ranks_and_values() -> None:
    deltas = [fake("a", planted(96, 160, 3), factored=True), fake("b", planted(40, 40, 40), factored=False)]
    one, two = random_like(deltas, seed=1)
    assert one.rank == 3
    np.testing.assert_allclose(
        np.linalg.svd(one.matrix(), compute_uv=False)[:4],
        np.linalg.svd(deltas[0].matrix(), compute_uv=False)[:4],
        atol=1e-4,
        err_msg="float32",
    )
    assert np.linalg.norm(two.matrix()) == pytest.approx(deltas[1].norm, rel=1e-5)
    cosine = float((one.matrix() * deltas[0].matrix()).sum()) / deltas[0].norm ** 2
    assert abs(cosine) < 0.2  # unrelated: sd about 1/√(rank · 96)


@pytest.mark.parametrize("size", [1e25, 1e37])
@pytest.mark.parametrize("rank", [1, 32])
def test_a_difference_whose_squares_leave_float32_is_measured(size: float, rank: int) -> None:
    base = tiny("qwen3")
    tuned = copy.deepcopy(base)
    change = size * planted(32, 64, rank) / 100.0
    with torch.no_grad():
        tuned.model.layers[1].self_attn.o_proj.weight += change
    (delta,) = weight_deltas(base, tuned)
    weights = [m.model.layers[1].self_attn.o_proj.weight.double() for m in (base, tuned)]
    true = float(torch.linalg.norm(weights[1] - weights[0]))
    assert delta.norm == pytest.approx(true, rel=1e-6)
    assert np.isfinite(delta.matrix()).all()
    assert np.linalg.norm(delta.matrix().astype(np.float64)) == pytest.approx(true, rel=1e-6)
    assert (delta.rank == rank) if rank == 1 else delta.rank is None
    assert delta.spectrum is not None
    assert np.linalg.norm(delta.spectrum.astype(np.float64)) == pytest.approx(true, rel=1e-5)
