"""Self-checks measure something, and fail when it is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine.models.loading import LoadedModel, from_parts
from engine.passes import capture, self_checks
from engine.passes.patch_engine import PatchEngine
from engine.passes.rounding import DRAWS, LAST, Noise, measure_noise
from engine.passes.self_checks import check_capture, check_self_patch, check_stored

PROMPTS = [list(range(5, 5 + length)) for length in (40, 20, 9, 3)]


@pytest.fixture(scope="module")
def lm() -> LoadedModel:
    return from_parts(tiny("qwen3", seed=0), None)


@pytest.fixture(scope="module")
def noise(lm: LoadedModel) -> Noise:
    return measure_noise(lm, PROMPTS)


def test_a_sound_model_passes_with_padding_in_the_batch(
    lm: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def watched(model: LoadedModel, token_ids: Any) -> None:
        shapes.append(sorted(map(len, token_ids)))
        capture_forward(model, token_ids)

    capture_forward = capture.forward_hidden
    monkeypatch.setattr(capture, "forward_hidden", watched)
    measured = measure_noise(lm, PROMPTS)
    assert all([length] * (1 + DRAWS) in shapes for length in (3, 9, 20, 40))  # each without others
    assert all(check.passed for check in check_capture(lm, PROMPTS, measured))
    assert shapes[-1] == [3, 9, 20, 40]  # very different lengths together


def test_padding_that_leaks_fails(lm: LoadedModel, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    real = capture.capture_batch

    def leaking(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        return {name: {key: rows * 1.001 for key, rows in sites.items()} for name, sites in found.items()}

    monkeypatch.setattr(self_checks, "capture_batch", leaking)
    assert not any(check.passed for check in check_capture(lm, PROMPTS, noise))


def test_values_that_are_not_numbers_never_pass(
    lm: LoadedModel, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {("resid", 0): np.ones((2, 4), np.float32), ("resid", 1): np.ones((2, 4), np.float32)}
    broken = {**rows, ("resid", 0): np.full((2, 4), np.nan, np.float32)}
    assert check_stored({LAST: rows}, {LAST: rows}, noise, bfloat16=False).passed
    for one, other in ((rows, broken), (broken, rows)):
        check = check_stored({LAST: one}, {LAST: other}, noise, bfloat16=True)
        assert not check.passed
        assert "worst at resid 0" in check.detail
    left = self_checks._left_padded
    monkeypatch.setattr(
        self_checks,
        "_left_padded",
        lambda *a: {key: value * math.nan if key[1] == 0 else value for key, value in left(*a).items()},
    )
    padded = {check.name: check.passed for check in check_capture(lm, PROMPTS, noise)}
    assert padded == {"batched = single prompt": True, "left padding = right padding": False}


def test_rounding_of_the_store_is_allowed_for_and_no_more(noise: Noise) -> None:
    """bfloat16 moves a number by at most 2^-9 of it, so a row by at most that."""
    row = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    rounded = torch.from_numpy(row).bfloat16().float().numpy()
    key = ("resid", 1)
    for stored, passed in ((rounded, True), (row * np.float32(1.01), False)):
        check = check_stored({LAST: {key: stored}}, {LAST: {key: row}}, noise, bfloat16=True)
        assert check.passed is passed
    assert not check_stored({LAST: {key: rounded}}, {LAST: {key: row}}, noise, bfloat16=False).passed


def test_nothing_compared_is_no_pass(noise: Noise) -> None:
    check = check_stored({}, {}, noise, bfloat16=True)
    assert not check.passed
    assert check.detail == "nothing was compared"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_self_patch_is_exact_in_every_dtype(dtype: torch.dtype) -> None:
    lm = from_parts(tiny("qwen3", seed=0).to(dtype), None)
    check = check_self_patch(PatchEngine(lm, PROMPTS, [len(ids) - 1 for ids in PROMPTS]))
    assert check.limit == 1e-6
    assert check.passed
