"""Steered weights: nothing at 0, the tuned model at 1, the scaled difference between, refusals by name."""

from __future__ import annotations

import copy
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny

from engine.errors import ModelError
from engine.models.loading import LoadedModel, from_parts
from engine.passes.generate import generate
from engine.passes.self_checks import check_weight_shift
from engine.weights.deltas import WeightDelta, weight_deltas
from engine.weights.steer import WeightShift

IDS = random_tokens(3, 12)


def changed(model: Any, size: float = 0.1, seed: int = 1) -> Any:
    """A copy with every tensor changed: output projections in rank 2, all others in full."""
    tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "o_proj" in name and noise.ndim == 2:
                noise = noise[:, :2] @ noise[:2]
            parameter.add_(size * parameter.abs().mean() * noise)
    return tuned


@pytest.fixture(scope="module")
def pair() -> tuple[LoadedModel, LoadedModel, list[WeightDelta]]:
    base = tiny("qwen3")
    tuned = changed(base)
    deltas = list(weight_deltas(base, tuned))
    assert {delta.rank for delta in deltas if "o_proj" in delta.name} == {2}
    assert {delta.rank for delta in deltas if "o_proj" not in delta.name} == {None}
    return from_parts(base), from_parts(tuned), deltas


def logits(lm: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm.model(IDS).logits
    return found


def scaled(base: LoadedModel, deltas: list[WeightDelta], alpha: float) -> torch.Tensor:
    """Logits of a real copy of the model with W + αΔW written into it."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for delta in deltas:
                if delta.name == name:
                    parameter.add_(alpha * torch.from_numpy(delta.matrix()))
        found: torch.Tensor = model(IDS).logits
    return found


def test_zero_changes_no_bit_and_nothing_stays_behind(pair: Any) -> None:
    base, _, deltas = pair
    before, shift = logits(base), WeightShift(base, deltas)
    with shift.at(0.0):
        assert torch.equal(logits(base), before)
    with shift.at(1.0):
        assert (logits(base) - before).abs().max() > 0.1
    assert torch.equal(logits(base), before)
    check = check_weight_shift(base, deltas, IDS.tolist())
    assert [(c.name, c.value, c.passed) for c in check] == [("steering at α = 0 is a no-op", 0.0, True)]


def test_one_is_the_tuned_model(pair: Any) -> None:
    base, tuned, deltas = pair
    with WeightShift(base, deltas).at(1.0):
        found = logits(base)
    # Two products are summed in another order: 6e-8 relative each, logits of about 10, three blocks.
    assert (found - logits(tuned)).abs().max() < 1e-4


@pytest.mark.parametrize("alpha", [-2.0, -0.3, 0.7, 2.0])
def test_any_amplitude_is_that_multiple_of_the_difference(pair: Any, alpha: float) -> None:
    base, _, deltas = pair
    with WeightShift(base, deltas).at(alpha):
        found = logits(base)
    assert (found - scaled(base, deltas, alpha)).abs().max() < 1e-4
    assert (found - logits(base)).abs().max() > 0.05


def test_two_shifts_add_up(pair: Any) -> None:
    base, tuned, deltas = pair
    third = WeightShift(base, [delta for delta in deltas if "norm" not in delta.name])
    rest = WeightShift(base, [delta for delta in deltas if "norm" in delta.name])
    with third.at(1.0), rest.at(1.0):
        assert (logits(base) - logits(tuned)).abs().max() < 1e-4


def test_generated_tokens_are_those_of_the_merged_weights(pair: Any) -> None:
    base = pair[0]
    model = changed(base.model, size=0.6)
    tuned, deltas = from_parts(model), weight_deltas(base.model, model)
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (5, 9, 9, 14)]
    with WeightShift(base, deltas).at(1.0):
        found = generate(base, prompts, max_new_tokens=12, stop=()).tokens[0]
    assert found == generate(tuned, prompts, max_new_tokens=12, stop=()).tokens[0]
    plain = generate(base, prompts, max_new_tokens=12, stop=()).tokens[0]
    assert all(a != b for a, b in zip(found, plain, strict=True))


def test_another_thread_sees_the_model_as_it_is(pair: Any) -> None:
    base, _, deltas = pair
    before, seen = logits(base), []
    with WeightShift(base, deltas).at(1.0):
        other = threading.Thread(target=lambda: seen.append(logits(base)))
        other.start()
        other.join()
    assert torch.equal(seen[0], before)


def test_biases_of_projections_are_shifted() -> None:
    base = tiny("llama")  # attention and MLP with biases
    tuned = changed(base)
    lm = from_parts(base)
    with WeightShift(lm, weight_deltas(base, tuned)).at(1.0):
        assert (logits(lm) - tuned(IDS).logits).abs().max() < 1e-4


def test_half_precision_weights_stay_within_their_rounding() -> None:
    base = tiny("qwen3").to(torch.bfloat16)
    tuned = changed(base)
    lm = from_parts(base)
    with torch.no_grad():
        before, wanted = base(IDS).logits.float(), tuned(IDS).logits.float()
        with WeightShift(lm, weight_deltas(base, tuned)).at(1.0):
            found = base(IDS).logits.float()
    # bfloat16 has 8 bits: each of some twenty roundings is up to 2⁻⁹ of activations whose logits are near 10
    assert (found - wanted).abs().max() < 0.25 * (wanted - before).abs().max()


def with_name(delta: WeightDelta, **changes: Any) -> list[WeightDelta]:
    return [replace(delta, **changes)]


def test_what_does_not_fit_is_refused_by_name(pair: Any) -> None:
    base, _, deltas = pair
    one = next(delta for delta in deltas if delta.dense is not None and len(delta.shape) == 2)
    assert one.dense is not None
    spoilt = one.dense.copy()
    spoilt[0, 0] = np.nan
    for wrong, says in (
        (with_name(one, name="model.layers.9.mlp.up_proj.weight"), r"layers\.9.*doesn't have"),
        (with_name(one, dense=one.dense[:-1], shape=one.dense[:-1].shape), r"wrong shape"),
        (with_name(one, dense=spoilt), rf"{one.name}.* is not finite"),
        (with_name(one, dense=None), rf"{one.name} was not kept"),
    ):
        with pytest.raises(ModelError, match=says.replace("[", r"\[")):
            WeightShift(base, wrong)
    with pytest.raises(ModelError, match="α is not finite"), WeightShift(base, deltas).at(float("nan")):
        pass


def test_experts_are_refused_by_name() -> None:
    base = tiny("qwen3_moe")
    lm = from_parts(base)
    deltas = list(weight_deltas(base, changed(base)))
    # Their three axes have no factors and are not kept; the name comes first.
    with pytest.raises(ModelError, match=r"experts.*can't be steered.*Experts"):
        WeightShift(lm, [delta for delta in deltas if "experts" in delta.name])
    assert check_weight_shift(lm, deltas, IDS.tolist()) == []


def test_the_code_on_the_method_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    (block,) = re.findall(r"```python\n(.*?)```", (root / "docs/methods/weights.md").read_text(), re.S)
    exec(compile(block, "weights.md", "exec"), {})
    said = capsys.readouterr().out
    assert "model.layers.4.self_attn.o_proj.weight rank 4 stand out: 1" in said
    assert "heads [2, 6]" in said
    before, after = said.splitlines()[-2:]
    assert before.endswith("No, I do not agree.")
    assert after.startswith("1.0 Yes")
