"""Rounding noise: what is measured, against other ways to round the same sums."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine.errors import PatchbayError
from engine.models.loading import LoadedModel, from_parts
from engine.passes.capture import capture_batch
from engine.passes.rounding import (
    COMPONENTS,
    LAST,
    Rounding,
    divergence,
    kl_limit,
    last_tokens,
    measure_noise,
    nudged,
    relative_rows,
)

PROMPTS = [list(range(5, 5 + length)) for length in (40, 23, 11, 4)]


def built(dtype: torch.dtype, blocks: int = 8) -> LoadedModel:
    return from_parts(tiny("qwen3", num_hidden_layers=blocks).to(dtype))


def test_rows_apart_by_hand() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    found = np.array([[3.0, 4.5], [0.0, 0.0], [1.0, 0.0]], np.float32)
    assert relative_rows(found, expected).tolist() == pytest.approx([0.1, 0.0, np.inf])
    assert not np.isfinite(relative_rows(found * np.nan, expected)).any()


def test_a_divergence_is_that_of_the_definition_and_never_hides_what_is_no_number() -> None:
    p, q = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.9, 0.1]).double()
    assert divergence(p.log(), q.log()) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert divergence(p.log(), p.log()) == 0
    assert np.isnan(divergence(p.log() * np.nan, q.log()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_nudge_moves_the_stream_by_a_rounding_of_its_dtype(dtype: torch.dtype) -> None:
    """The embedding is moved once: no number by more than a unit in the last place, and some are moved."""
    lm = built(dtype)
    wanted = {LAST: last_tokens(PROMPTS)}
    plain = capture_batch(lm, PROMPTS, [0], wanted, COMPONENTS)[LAST]
    with nudged(lm, [3]):
        moved = capture_batch(lm, PROMPTS, [0], wanted, COMPONENTS)[LAST]
    again = capture_batch(lm, PROMPTS, [0], wanted, COMPONENTS)[LAST]
    assert all(np.array_equal(again[key], plain[key]) for key in plain)  # nothing of it stays behind
    apart = np.abs(moved["resid", 0] - plain["resid", 0])
    assert (apart <= torch.finfo(dtype).eps * np.abs(plain["resid", 0]) * 1.001).all()
    assert (apart > 0).mean() > 0.1


def test_only_the_rows_with_a_seed_are_nudged() -> None:
    """In one batch: a row as it is, two moved in different ways, and one moved as the first of them."""
    lm = built(torch.bfloat16)
    wanted = {LAST: last_tokens([PROMPTS[0]] * 4)}
    plain = capture_batch(lm, [PROMPTS[0]] * 4, range(4), wanted, COMPONENTS)[LAST]["resid", 1]
    with nudged(lm, [None, 3, 4, 3]):
        moved = capture_batch(lm, [PROMPTS[0]] * 4, range(4), wanted, COMPONENTS)[LAST]["resid", 1]
    assert np.array_equal(moved[0], plain[0])
    assert np.array_equal(moved[1], moved[3])
    assert (moved[1] != plain[1]).any()
    assert (moved[1] != moved[2]).any()


def test_the_noise_is_what_another_precision_shows() -> None:
    """Half precision against the same weights in float32: the error is of the size that is measured.

    Factor 4: both are single draws, and one side of the comparison isn't rounded at all.
    """
    half = built(torch.bfloat16)
    exact = from_parts(tiny("qwen3", num_hidden_layers=8).to(torch.bfloat16).float())
    noise = measure_noise(half, PROMPTS)
    wide = measure_noise(exact, PROMPTS)
    kl = [divergence(a, b) for a, b in zip(noise.log_probs, wide.log_probs, strict=True)]
    assert noise.kl.mean() / 4 < np.mean(kl) < 4 * noise.kl.mean()
    for (_, component, layer), told in noise.sites.items():
        if layer:
            apart = relative_rows(noise.plain[component, layer], wide.plain[component, layer]).max()
            assert told / 4 < apart < 4 * told
    assert wide.kl.max() < 1e-9
    assert wide.summary(torch.float32).relative < 1e-4


def test_noise_grows_with_depth_and_only_with_rounding() -> None:
    shallow, deep = (measure_noise(built(torch.bfloat16, n), PROMPTS) for n in (3, 30))
    assert deep.summary(torch.bfloat16).relative > 2 * shallow.summary(torch.bfloat16).relative
    assert deep.kl.mean() > shallow.kl.mean()


def test_a_limit_grows_with_the_square_and_never_vanishes() -> None:
    assert kl_limit(0.0) == 1e-6
    assert kl_limit(1e-3) == pytest.approx(25e-3 + 1e-6)


def test_the_record_survives_a_store() -> None:
    record = measure_noise(built(torch.bfloat16), PROMPTS).summary(torch.bfloat16)
    assert Rounding.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert set(record.sites) == set(COMPONENTS)
    assert len(record.sites["resid"]) == 9
    assert len(record.sites["head_z"]) == 8
    assert 0 < record.kl <= record.kl_worst
    assert record.n_prompts == 4
    assert "bfloat16" in record.detail
    with pytest.raises(PatchbayError, match="malformed"):
        Rounding.from_json({"kl": 0.1})


def test_a_prompt_at_the_end_of_the_positions_is_measured_without_tokens_behind_it() -> None:
    lm = built(torch.float32)
    full = [list(np.arange(lm.max_length) % 90 + 5)]
    assert measure_noise(lm, full).later == {}
    assert measure_noise(lm, PROMPTS).later.keys() == measure_noise(lm, PROMPTS).sites.keys()
