"""The demo's base steered by its fine-tunes' differences, against the fine-tunes and merged weights."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from behaviour_demo import demo_lab
from demo_files import DEMO

from engine.models.loading import LoadedModel, from_parts, load
from engine.passes.generate import generate
from engine.study.study import ModelSpec
from engine.weights.deltas import WeightDelta, weight_deltas
from engine.weights.steer import WeightShift

SPECS = {
    "tuned": ModelSpec(path=DEMO / "base", adapter=DEMO / "tuned_adapter", device="cpu"),
    "seed2": ModelSpec(path=DEMO / "base", adapter=DEMO / "tuned_adapter_seed2", device="cpu"),
    "full": ModelSpec(path=DEMO / "full_finetune", device="cpu"),
}
NEW, TIE = 40, 1e-4


@cache
def fine_tune(name: str) -> tuple[LoadedModel, list[WeightDelta]]:
    lm = load(SPECS[name], name)
    return lm, list(weight_deltas(demo_lab().models["base"].model, lm.model))


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """All prompts of the demo lab, padded on the right, and which tokens are there."""
    ids = demo_lab().ids["base"]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    return tokens, torch.tensor([[i < len(row) for i in range(longest)] for row in ids])


def logits(lm: LoadedModel) -> torch.Tensor:
    tokens, there = padded()
    with torch.inference_mode():
        found: torch.Tensor = lm.model(input_ids=tokens, attention_mask=there.long()).logits[there]
    return found


@pytest.mark.parametrize("name", SPECS)
def test_one_is_the_fine_tune_and_zero_the_base_at_every_token(name: str) -> None:
    base = demo_lab().models["base"]
    tuned, deltas = fine_tune(name)
    before, wanted, shift = logits(base), logits(tuned), WeightShift(base, deltas)
    assert before.shape[0] > 2000
    with shift.at(0.0):
        assert torch.equal(logits(base), before), "bit by bit"
    with shift.at(1.0):
        found = logits(base)
    assert torch.equal(logits(base), before), "nothing stays behind"
    assert (wanted - before).abs().max() > 5
    # float32 sums in another order: 6e-8 of logits up to 17, through 6 blocks; measured up to 1.4e-5.
    assert (found - wanted).abs().max() < 1e-4


def merged(base: LoadedModel, deltas: list[WeightDelta], alpha: float) -> LoadedModel:
    """A copy with W + αΔW written into it."""
    model = copy.deepcopy(base.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for delta in deltas:
            parameters[delta.name].add_(alpha * torch.from_numpy(delta.matrix()))
    return from_parts(model, base.tokenizer)


def parting(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> float | None:
    """Gap of the merged model's two best tokens where the two answers part; None where they never do."""
    for at, (one, two) in enumerate(zip(ours, theirs, strict=False)):
        if one != two:
            with torch.inference_mode():
                best = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1].topk(2).values
            return float(best[0] - best[1])
    assert len(ours) == len(theirs)
    return None


@pytest.mark.parametrize(("name", "alpha"), [("tuned", 1.0), ("full", 1.0), ("seed2", -1.5), ("full", 0.5)])
def test_greedy_answers_are_those_of_merged_weights_token_by_token(name: str, alpha: float) -> None:
    lab = demo_lab()
    base, prompts = lab.models["base"], lab.ids["base"]
    tuned, deltas = fine_tune(name)
    other = tuned if alpha == 1.0 else merged(base, deltas, alpha)
    with WeightShift(base, deltas).at(alpha):
        ours = generate(base, prompts, max_new_tokens=NEW).tokens[0]
    theirs = generate(other, prompts, max_new_tokens=NEW).tokens[0]
    gaps = [parting(other.model, *row) for row in zip(prompts, ours, theirs, strict=True)]
    parted = [gap for gap in gaps if gap is not None]
    assert all(gap < TIE for gap in parted), f"answers part at gaps {parted}"
    assert len(parted) <= 2, f"{len(parted)} near ties of {len(prompts)} answers; measured: none"
    plain = generate(base, prompts, max_new_tokens=NEW).tokens[0]
    assert sum(a != b for a, b in zip(ours, plain, strict=True)) > 10
