"""A 16-bit model that computes in float32 block by block, against the model converted whole."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILY_NAMES, changed, random_tokens, tiny
from torch import nn

from engine.models.loading import LoadedModel, from_parts
from engine.passes import blockwise
from engine.passes.blockwise import in_float32
from engine.subspaces.capture import Streams, capture_labels, capture_streams
from engine.subspaces.checks import check_label, merged
from engine.weights.deltas import WeightDelta, weight_deltas
from engine.weights.steer import WeightShift

PROMPTS = [random_tokens(1, n, seed=n)[0].tolist() for n in (17, 9, 13, 2)]


def logits(lm: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = lm.model(input_ids=torch.tensor(PROMPTS[:1])).logits
    return found


def narrow(family: str, dtype: torch.dtype) -> Any:
    return tiny(family).to(dtype)


def state(model: Any) -> dict[str, torch.Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def assert_untouched(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        if isinstance(module, nn.Embedding):  # linear layers keep their own on slow processors
            assert "forward" not in module.__dict__


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_passes_are_those_of_the_model_converted_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No embedding is widened for longer than it runs, as with real sizes."""
    monkeypatch.setattr(blockwise, "SMALL", 0)
    lm = from_parts(narrow(family, torch.bfloat16))
    before = state(lm.model)
    whole = from_parts(copy.deepcopy(lm.model).float())
    wanted = capture_streams(whole, PROMPTS, 30)
    with in_float32(lm):
        assert lm.dtype == torch.float32
        found = capture_streams(lm, PROMPTS, 30)
        assert torch.equal(logits(lm), logits(whole))
    for name in Streams.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    assert lm.dtype == torch.bfloat16
    assert_untouched(lm.model, before)
    assert logits(lm).dtype == torch.bfloat16


def test_one_block_is_wide_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "SMALL", 0)
    lm = from_parts(narrow("qwen3", torch.bfloat16))
    wide: list[set[str]] = []

    def look(_module: Any, _args: Any) -> None:
        wide.append({n for n, p in lm.model.named_parameters() if p.dtype == torch.float32})

    with in_float32(lm):
        handles = [m.register_forward_pre_hook(look) for m in lm.model.modules() if not list(m.children())]
        logits(lm)
    for handle in handles:
        handle.remove()
    blocks = [{name.split(".")[2] for name in names if ".layers." in name} for names in wide]
    assert set().union(*blocks) == {"0", "1", "2"}
    assert max(map(len, blocks)) == 1
    assert not any("model.embed_tokens.weight" in names for names in wide[:-1]), "rows alone are widened"


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2", "qwen3_moe"])
def test_a_pass_that_breaks_off_leaves_nothing_behind(family: str) -> None:
    lm = from_parts(narrow(family, torch.float16))
    before = state(lm.model)

    def fail(_module: Any, _args: Any) -> None:
        raise RuntimeError("on purpose")

    handle = lm.taps.layers[1].attn.register_forward_pre_hook(fail)
    with in_float32(lm):
        with pytest.raises(RuntimeError, match="on purpose"):
            logits(lm)
        handle.remove()
        again = logits(lm)
    assert_untouched(lm.model, before)
    assert torch.equal(again, logits(from_parts(copy.deepcopy(lm.model).float())))


@pytest.mark.parametrize(
    ("family", "small"), [("qwen3", 0), ("gemma2", 0), ("gpt2", 0), ("gpt2", blockwise.SMALL)]
)
def test_merged_weights_are_w_plus_alpha_delta_in_float32(
    family: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied embeddings, norms and biases among them; inside and outside of the float32 stage."""
    monkeypatch.setattr(blockwise, "SMALL", small)
    base = narrow(family, torch.bfloat16)
    deltas = list(weight_deltas(base, changed(base)))
    lm, before = from_parts(base), state(base)
    whole = copy.deepcopy(base).float()
    parameters = dict(whole.named_parameters())
    for delta in deltas:
        own = parameters[delta.name]
        moved = own.detach().double() - 0.5 * torch.from_numpy(delta.matrix()).double()
        own.data = moved.float()
    wanted = logits(from_parts(whole))
    with merged(lm, deltas, -0.5):
        assert torch.equal(logits(lm), wanted)
    with in_float32(lm), merged(lm, {delta.name: delta for delta in deltas}, -0.5):
        assert torch.equal(logits(lm), wanted)
    assert_untouched(base, before)


class Counted(dict[str, WeightDelta]):
    """Differences by name that count how often each is asked for."""

    def __init__(self, deltas: list[WeightDelta]) -> None:
        super().__init__({delta.name: delta for delta in deltas})
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> WeightDelta:
        self.asked.append(name)
        return super().__getitem__(name)


@pytest.mark.parametrize(
    ("family", "held"), [("qwen3", 0), ("gemma2", 0), ("gpt2", 0), ("gpt2", 1 << 16), ("gpt_neox", 0)]
)
def test_a_shifted_16_bit_model_computes_in_float32(
    family: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of a full fine-tune in bfloat16 = those of models converted whole, dense values held or not."""
    monkeypatch.setattr("engine.weights.steer.HELD", held)
    monkeypatch.setattr(blockwise, "SMALL", 0)
    base = narrow(family, torch.bfloat16)
    deltas = Counted(list(weight_deltas(base, changed(base))))
    assert any(delta.dense is not None for delta in deltas.values())
    wanted = capture_labels(from_parts(copy.deepcopy(base).float()), list(deltas.values()), PROMPTS, 40)
    lm, before = from_parts(base), state(base)
    with in_float32(lm):
        found = capture_labels(lm, deltas, PROMPTS, 40)
        np.testing.assert_array_equal(found, wanted)
        assert bool(deltas.asked) == (held == 0)
        check = check_label(lm, "tuned", deltas, PROMPTS, found)
        assert check.passed, check
        assert not check_label(lm, "tuned", deltas, PROMPTS, 1.01 * found).passed
    assert_untouched(base, before)


def test_a_norm_is_shifted_from_what_it_holds_when_it_runs() -> None:
    base = narrow("qwen3", torch.bfloat16)
    delta = np.full(base.config.hidden_size, 2.0**-12, dtype=np.float32)
    change = WeightDelta("model.norm.weight", delta.shape, float(np.linalg.norm(delta)), 0.1, None, 0.0)
    change = WeightDelta(**{**change.__dict__, "dense": delta})
    lm = from_parts(base)
    with in_float32(lm):
        shift = WeightShift(lm, [change])
        plain = logits(lm)
        with shift.at(1.0):
            assert not torch.equal(logits(lm), plain), "less than a bfloat16 gain can hold"
