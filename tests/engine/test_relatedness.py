"""Which pairs have a common origin: by their weights, against pairs whose origin is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import fresh_jamba, tiny
from torch import nn

from engine.models.loading import load
from engine.study.study import ModelSpec
from engine.weights.origin import compare
from engine.weights.relatedness import ALIKE, Matrix, relatedness


def flat(model: nn.Module) -> np.ndarray:
    values = [
        value.detach().double().flatten()
        for name, value in model.named_parameters()
        if value.ndim >= 2 and not name.endswith("A_log")
    ]
    return torch.cat(values).numpy()


def noisy(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Every matrix moved by a random direction of `share` of its norm."""
    moved, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in moved.parameters():
            noise = torch.randn(value.shape, generator=draw)
            value.add_(share * value.norm() / noise.norm() * noise)
    return moved


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3_text"])
def test_two_random_models_are_not_related(family: str) -> None:
    one, other = tiny(family, seed=0), tiny(family, seed=1)
    found = compare(one, other)
    assert found.verdict == "unrelated"
    assert found.alike == 0
    a, b = flat(one), flat(other)
    assert found.distance == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert found.distance == pytest.approx(np.sqrt(2), abs=0.05)


def test_the_fixed_start_of_recurrent_blocks_is_no_common_origin() -> None:
    """A_log begins as log 1 … log N in every model, and outweighs all other matrices of a fresh one."""
    one, other = fresh_jamba(0), fresh_jamba(1)
    fixed = [name for name, _ in one.named_parameters() if name.endswith("A_log")]
    assert fixed
    assert all(torch.equal(one.get_parameter(name), other.get_parameter(name)) for name in fixed)
    found, a, b = compare(one, other), flat(one), flat(other)
    assert (found.verdict, found.alike) == ("unrelated", 0)
    assert found.matrices == sum(value.ndim >= 2 for value in one.parameters()) - len(fixed)
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert compare(one, noisy(one, 0.3)).verdict == "related"


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_a_models_scale_makes_no_relation(scale: float) -> None:
    """‖W_b − W_a‖ alone would: with ‖W_b‖ = 0.3 ‖W_a‖ it is 1.04, less than √2."""
    one, other = tiny("llama", seed=0), tiny("llama", seed=1)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(scale)
    found = compare(one, other)
    assert found.verdict == "unrelated"
    assert found.distance == pytest.approx(np.hypot(1, scale), rel=0.05)


@pytest.mark.parametrize("share", [1e-3, 0.3, 1.0, 2.0])
def test_a_model_that_moved_by_up_to_twice_its_norm_is_still_related(share: float) -> None:
    one = tiny("qwen3", seed=3)
    found = compare(one, noisy(one, share))
    assert found.verdict == "related"
    assert found.distance == pytest.approx(share, rel=0.02)
    assert found.cosine == pytest.approx(1 / np.hypot(1, share), abs=0.03)


def test_trained_pairs_of_the_demo_are_related_and_a_random_model_is_not() -> None:
    base, full, lora = (
        load(spec, "model").model
        for spec in (
            ModelSpec(path="demo/base"),
            ModelSpec(path="demo/full_finetune"),
            ModelSpec(path="demo/base", adapter="demo/tuned_adapter"),
        )
    )
    assert [compare(base, other).verdict for other in (full, lora, base)] == ["related"] * 3
    same = compare(base, base)
    assert (same.distance, same.cosine, same.alike) == (0.0, 1.0, same.matrices)
    fresh = copy.deepcopy(base)
    torch.manual_seed(5)
    fresh.apply(fresh._init_weights)
    found = compare(base, fresh)
    assert found.verdict == "unrelated"
    assert found.distance < 1.2, "of other norms: far from √2"
    assert abs(found.cosine) < 0.01


@pytest.mark.parametrize("gone", [0, 2, 3])
def test_a_model_without_one_of_its_blocks_is_related_in_part(gone: int) -> None:
    one = tiny("qwen3", seed=3, num_hidden_layers=4)
    pruned = copy.deepcopy(one)
    del pruned.model.layers[gone]
    for first, second in ((one, pruned), (pruned, one)):
        found = compare(first, second)
        assert found.verdict == "partly"
        assert found.embedding == 1.0
        assert found.alike == 1 + 7 * gone, "the embedding, tied, and all before the gap"
        assert found.matrices == 1 + 7 * 4


def test_other_shapes_can_not_be_compared() -> None:
    found = compare(tiny("llama", seed=0), tiny("llama", seed=0, hidden_size=64, vocab_size=107))
    assert (found.verdict, found.compared) == ("not comparable", 0)


def test_without_the_second_norm_the_distance_bounds_the_cosine() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        a, b = draw.normal(size=(2, 5))
        b = a + draw.uniform(0.1, 1.5) * b
        apart, size = float(np.linalg.norm(b - a)), float(np.linalg.norm(a))
        true = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert Matrix(size, apart, float(np.linalg.norm(b))).cosine == pytest.approx(true)
        least = Matrix(size, apart).cosine
        assert np.isnan(least) == (apart >= size)
        assert not least > true + 1e-12
    near, far = (relatedness([Matrix(1.0, apart)]) for apart in (0.5, 1.4))
    assert (near.verdict, near.exact, far.verdict) == ("related", False, "unknown")
    assert near.cosine == pytest.approx(np.sqrt(0.75))
    assert near.cosine > ALIKE
