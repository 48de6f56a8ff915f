"""Self-checks measure something, and fail when it is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine import capture, self_checks
from engine.intervene import SELF_LIMIT_HALF
from engine.model import LoadedModel, from_parts
from engine.self_checks import check_capture, check_self_patch, check_stored

PROMPTS = [list(range(5, 5 + length)) for length in (40, 20, 9, 3)]


@pytest.fixture(scope="module")
def lm() -> LoadedModel:
    return from_parts(tiny("qwen3", seed=0), None)


def test_a_sound_model_passes_with_padding_in_the_batch(
    lm: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def watched(model: LoadedModel, token_ids: Any) -> None:
        shapes.append(sorted(map(len, token_ids)))
        capture_forward(model, token_ids)

    capture_forward = capture.forward_hidden
    monkeypatch.setattr(capture, "forward_hidden", watched)
    assert all(check.passed for check in check_capture(lm, PROMPTS))
    assert [3, 9, 20, 40] in shapes  # very different lengths together, and each alone
    assert all([length] in shapes for length in (3, 9, 20, 40))


def test_padding_that_leaks_fails(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = capture.capture_batch

    def leaking(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        return {name: {key: rows * 1.001 for key, rows in sites.items()} for name, sites in found.items()}

    monkeypatch.setattr(self_checks, "capture_batch", leaking)
    assert not any(check.passed for check in check_capture(lm, PROMPTS))


def test_values_that_are_not_numbers_never_pass(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {("resid", 0): np.ones((2, 4), np.float32), ("resid", 1): np.ones((2, 4), np.float32)}
    broken = {**rows, ("resid", 0): np.full((2, 4), np.nan, np.float32)}
    assert check_stored(rows, rows, lm, bfloat16=False).passed
    for bfloat16 in (False, True):
        check = check_stored(rows, broken, lm, bfloat16=bfloat16)
        assert not check.passed
        assert "worst at resid 0" in check.detail
    left = self_checks._left_padded
    monkeypatch.setattr(
        self_checks,
        "_left_padded",
        lambda *a: {key: value * math.nan if key[1] == 0 else value for key, value in left(*a).items()},
    )
    padded = {check.name: check.passed for check in check_capture(lm, PROMPTS)}
    assert padded == {"batched = single prompt": True, "left padding = right padding": False}


def test_nothing_compared_is_no_pass(lm: LoadedModel) -> None:
    check = check_stored({}, {}, lm, bfloat16=True)
    assert not check.passed
    assert check.detail == "nothing was compared"


def test_a_half_precision_model_is_held_to_the_limit_of_its_dtype(lm: LoadedModel) -> None:
    assert check_self_patch(lm, PROMPTS).limit == 1e-6
    half = from_parts(tiny("qwen3", seed=0).to(torch.bfloat16), None)
    check = check_self_patch(half, PROMPTS)
    assert check.limit == SELF_LIMIT_HALF
    assert check.passed
