"""Weight differences are told by a tensor's place in the text model, whatever wraps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny

from engine.weights.deltas import weight_deltas
from engine.weights.names import unmatched


def twins() -> tuple[Any, Any]:
    """A Gemma 3 with its vision tower, and its text model alone with one tensor changed."""
    wrapper, text = tiny("gemma3"), tiny("gemma3_text")
    text.model.load_state_dict(wrapper.model.language_model.state_dict())
    text.tie_weights()
    with torch.no_grad():
        text.model.layers[1].mlp.down_proj.weight += 0.05
    return wrapper, text


@pytest.mark.parametrize("first", ["wrapper", "text"])
def test_a_text_model_is_compared_with_the_wrapper_it_came_from(first: str) -> None:
    wrapper, text = twins()
    base, tuned = (wrapper, text) if first == "wrapper" else (text, wrapper)
    assert unmatched(base, tuned) == {}
    (delta,) = weight_deltas(base, tuned)
    inside = "model.language_model" if first == "wrapper" else "model"
    assert delta.name == f"{inside}.layers.1.mlp.down_proj.weight"
    assert delta.rank == 1
    sign = 1.0 if first == "wrapper" else -1.0
    assert delta.matrix() == pytest.approx(sign * 0.05, abs=1e-6)


def test_two_wrappers_are_compared_with_their_towers() -> None:
    one, two = tiny("gemma3"), tiny("gemma3")
    changed = next(name for name, _ in two.named_parameters() if "vision_tower" in name)
    with torch.no_grad():
        two.get_parameter(changed).add_(0.1)
    assert [delta.name for delta in weight_deltas(one, two)] == [changed]
