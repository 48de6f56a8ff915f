"""Steered weights against merged ones in every family: logits, generated tokens, and nothing at α = 0."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny

from engine.models.loading import from_parts
from engine.passes.generate import generate
from engine.weights.deltas import weight_deltas
from engine.weights.steer import WeightShift

pytestmark = pytest.mark.reference

FAMILIES = (
    *("qwen3", "llama", "gemma2", "gpt2", "gpt_neox", "gemma3_text", "phi", "phi3", "cohere", "granite"),
    *("starcoder2", "glm4", "nemotron", "stablelm", "gemma"),
    *("arcee", "exaone4", "gpt_bigcode", "persimmon"),
    *("mixtral", "gpt_oss", "falcon 40B", "bloom", "deepseek_v3", "jamba", "qwen3_next", "opt"),
)
NEW, TIE = 12, 1e-4
LENGTHS = (9, 14, 5, 12)


def merged(base: Any, alpha: float) -> tuple[Any, Any]:
    """(tuned, base + α (tuned − base)): every tensor changed, some of the matrices in rank 2."""
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.ndim > 2:
                continue  # experts and convolutions: no difference of theirs is kept
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2 and torch.rand((), generator=generator) < 0.5 and min(noise.shape) > 2:
                noise = noise[:, :2] @ noise[:2]
            parameter.add_(0.1 * parameter.abs().mean() * noise)
        between = copy.deepcopy(base)
        for own, other in zip(between.parameters(), tuned.parameters(), strict=True):
            own.add_(alpha * (other - own))
    return tuned, between


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [1.0, -0.6])
def test_steered_weights_are_merged_weights(family: str, alpha: float) -> None:
    base = tiny(family)
    tuned, between = merged(base, alpha)
    lm, wanted = from_parts(base), from_parts(between)
    shift = WeightShift(lm, weight_deltas(base, tuned))
    ids = random_tokens(3, 14)
    with torch.no_grad():
        before, target = base(ids).logits, between(ids).logits
        with shift.at(alpha):
            found = base(ids).logits
        with shift.at(0.0):
            assert torch.equal(base(ids).logits, before)
    assert (target - before).abs().max() > 0.05
    assert (found - target).abs().max() < 1e-4  # float32, sums in another order

    prompts = [random_tokens(1, n, seed=n)[0].tolist() for n in LENGTHS]
    with shift.at(alpha):
        ours = generate(lm, prompts, max_new_tokens=NEW, stop=()).tokens[0]
    theirs = generate(wanted, prompts, max_new_tokens=NEW, stop=()).tokens[0]
    ties = sum(not same_until_a_tie(between, p, a, b) for p, a, b in zip(prompts, ours, theirs, strict=True))
    assert ties == 0, f"{ties} of {len(prompts)} answers part where the two best tokens are not tied"


def same_until_a_tie(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Token by token equal, up to the first place where the merged model's two best tokens lie within TIE."""
    for at, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        if one != two:
            with torch.no_grad():
                last = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1]
            best = last.topk(2).values
            return bool(best[0] - best[1] < TIE)
    return True
