from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine.models.loading import from_parts
from engine.models.taps import taps
from engine.weights.deltas import WeightDelta, weight_deltas
from engine.weights.heads import HeadShare, head_shares

NAMES = {
    "qwen3": ("layers.1.self_attn.o_proj", "layers.1.self_attn.k_proj"),
    "gpt2": ("h.1.attn.c_proj", "h.1.attn.c_attn"),
    "gpt_neox": ("layers.1.attention.dense", "layers.1.attention.query_key_value"),
}


def shares(family: str, name: str, part: str, rows: slice | list[int]) -> list[HeadShare]:
    """Shares after noise was added to z's columns, or to the rows that write a head, of block 1."""
    base = tiny(family)
    tuned = copy.deepcopy(base)
    weight = next(p for n, p in tuned.named_parameters() if name in n and n.endswith("weight"))
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    on_z_side = weight.T if (family == "gpt2") != (part == "o") else weight
    noise_side = noise.T if (family == "gpt2") != (part == "o") else noise
    with torch.no_grad():
        on_z_side[rows] += noise_side[rows]
    (delta,) = weight_deltas(base, tuned)
    return list(head_shares(from_parts(base).taps, delta))


@pytest.mark.parametrize("family", NAMES)
def test_a_changed_head_of_the_output_projection_is_found(family: str) -> None:
    width = taps(tiny(family)).head_dim
    found = shares(family, NAMES[family][0], "o", slice(2 * width, 3 * width))
    assert {(s.layer, s.part) for s in found} == {(1, "o")}
    assert [round(s.share, 6) for s in found] == [0, 0, 1, 0]
    assert found[2].share > found[2].high
    assert found[2].p < 1e-6


@pytest.mark.parametrize(
    ("family", "part", "rows"),
    [
        ("qwen3", "k", slice(16, 32)),  # head 1 of 2, 16 wide
        ("gpt2", "k", slice(32 + 8, 32 + 16)),  # stacked: q, then k; head 1 of 4, 8 wide
        ("gpt_neox", "k", slice(24 + 8, 24 + 16)),  # per head q, k, v
    ],
)
def test_a_changed_key_head_is_found_in_every_layout(family: str, part: str, rows: slice) -> None:
    found = [s for s in shares(family, NAMES[family][1], part, rows) if s.part == part]
    assert [s.head for s in found if s.share > 0.5] == [1]
    assert sum(s.share for s in found) == pytest.approx(1.0)


def test_random_differences_stay_inside_the_stated_range() -> None:
    base = tiny("qwen3", hidden_size=64, head_dim=16)
    name = "model.layers.0.self_attn.o_proj.weight"
    model = from_parts(base).taps
    outside, count = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        left, right = rng.normal(size=(64, 4)), rng.normal(size=(4, 64))
        dense = (left @ right).astype(np.float32)
        delta = WeightDelta(name, (64, 64), float(np.linalg.norm(dense)), 0.1, None, 0.0, dense=dense)
        for one in head_shares(model, delta):
            outside += not one.low <= one.share <= one.high
            count += 1
    # 5 % expected; heads of one matrix depend on each other, so 3 errors of 150 draws
    assert outside / count < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_other_tensors_have_no_heads() -> None:
    base = tiny("qwen3")
    dense = np.ones((32, 48), dtype=np.float32)
    delta = WeightDelta("model.layers.0.mlp.down_proj.weight", (32, 48), 1.0, 0.1, None, 0.0, dense=dense)
    assert list(head_shares(from_parts(base).taps, delta)) == []
