from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine.deltas import MAX_RANK, low_rank_factors, weight_deltas


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
