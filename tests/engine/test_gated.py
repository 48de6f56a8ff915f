"""Gated MLPs that overwrite their own activation: the same bits, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_tokens, tiny

from engine.models.taps import taps
from engine.passes import gated
from engine.passes.gated import gated_in_place


def mlps(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer.mlp for layer in taps(model).layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "olmo2", "granite"])
def test_every_gated_family_gives_the_same_bits(family: str, dtype: torch.dtype) -> None:
    model = tiny(family).to(dtype)
    ids = random_tokens(2, 9)
    plain = model(input_ids=ids).logits
    with torch.inference_mode(), gated_in_place([model]):
        assert all("forward" in mlp.__dict__ for mlp in mlps(model))
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert not any("forward" in mlp.__dict__ for mlp in mlps(model))


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox", "phi3", "phi"])
def test_other_activations_and_forms_are_left_alone(family: str) -> None:
    model = tiny(family)
    with torch.inference_mode(), gated_in_place([model]):
        assert not any("forward" in mlp.__dict__ for mlp in mlps(model))


def test_a_class_that_computes_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated, "_same", {})
    model = tiny("llama")
    kind = type(mlps(model)[0])
    real = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * real(self, x))
    with torch.inference_mode(), gated_in_place([model]):
        assert not any("forward" in mlp.__dict__ for mlp in mlps(model))


def test_hooks_inside_an_mlp_see_what_they_saw() -> None:
    model, seen = tiny("llama"), []
    mlp = mlps(model)[1]
    handle = mlp.act_fn.register_forward_hook(lambda _m, _args, out: seen.append(out))  # type: ignore[union-attr]
    with torch.inference_mode(), gated_in_place([model]):
        model(input_ids=random_tokens(1, 5))
    handle.remove()
    assert len(seen) == 1


def test_an_error_inside_gives_the_forwards_back() -> None:
    model = tiny("llama")
    with pytest.raises(ZeroDivisionError), gated_in_place([model]):
        raise ZeroDivisionError
    assert not any("forward" in mlp.__dict__ for mlp in mlps(model))
