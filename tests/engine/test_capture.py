"""Captured rows against one plain forward pass per prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILY_NAMES, UNLISTED_NAMES, tiny

from engine.errors import CaptureError
from engine.models.loading import from_parts
from engine.models.sites import record
from engine.passes import capture as capture_module
from engine.passes.capture import capture_unit
from engine.prompts.positions import Positions

COMPONENTS = ("resid", "attn_out", "mlp_out", "head_z")


def prompts(lengths: tuple[int, ...] = (9, 23, 4, 1, 17, 19)) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 101, size=length).tolist() for length in lengths]


def places(token_ids: list[list[int]]) -> dict[str, Positions]:
    last = tuple(np.array([len(ids) - 1]) for ids in token_ids)
    pooled = tuple(np.arange(len(ids) // 2, len(ids)) for ids in token_ids)
    every = tuple(np.arange(len(ids)) for ids in token_ids)
    return {
        "mean": Positions("mean", "mean", pooled, {}),
        "decision": Positions("decision", "one", last, {}),
        "tokens": Positions("tokens", "many", every, {}),
    }


def oracle(lm: Any, token_ids: list[list[int]], chosen: list[int]) -> dict[str, dict[Any, np.ndarray]]:
    """One unpadded forward pass a prompt, everything kept, picked apart afterwards."""
    found: dict[str, dict[Any, list[np.ndarray]]] = {name: {} for name in ("mean", "decision", "tokens")}
    for i in chosen:
        with record(lm.taps, COMPONENTS) as recording, torch.inference_mode():
            lm.model(input_ids=torch.tensor([token_ids[i]]))
        for key, value in recording.items():
            rows = value[0].numpy()
            found["tokens"].setdefault(key, []).append(rows)
            found["decision"].setdefault(key, []).append(rows[-1:])
            found["mean"].setdefault(key, []).append(rows[len(rows) // 2 :].mean(0, keepdims=True))
    return {name: {k: np.concatenate(v) for k, v in sites.items()} for name, sites in found.items()}


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.sqrt(np.mean(b**2)))


@pytest.mark.parametrize("family", [*FAMILY_NAMES, *UNLISTED_NAMES])
@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_captured_rows_equal_single_forward_passes(family: str, batch_tokens: int) -> None:
    lm = from_parts(tiny(family))
    token_ids = prompts()
    chosen = [1, 5, 4, 0, 3]
    got = capture_unit(
        lm, token_ids, chosen, places(token_ids), components=COMPONENTS, batch_tokens=batch_tokens
    )
    want = oracle(lm, token_ids, chosen)
    assert got.keys() == want.keys()
    for position, sites in want.items():
        assert got[position].keys() == sites.keys()
        for key, rows in sites.items():
            assert got[position][key].shape == rows.shape
            # float32 sums in another order, three layers deep
            assert deviation(got[position][key], rows) < 1e-5, (position, key)


def test_only_the_asked_layers_are_kept() -> None:
    lm = from_parts(tiny("qwen3"))
    token_ids = prompts()
    got = capture_unit(
        lm, token_ids, [0, 1], places(token_ids), components=COMPONENTS, layers=[1], batch_tokens=99
    )
    layers = {component: [k[1] for k in got["decision"] if k[0] == component] for component in COMPONENTS}
    assert layers == {"resid": [1, 2], "attn_out": [1], "mlp_out": [1], "head_z": [1]}


def test_out_of_memory_halves_the_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = from_parts(tiny("qwen3"))
    token_ids = prompts((12, 12, 11, 10))
    arguments: Any = (lm, token_ids, [0, 1, 2, 3], places(token_ids))
    whole = capture_unit(*arguments, components=COMPONENTS, batch_tokens=10_000)
    forward = capture_module.forward_hidden

    def small_memory(model: Any, rows: Any) -> None:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no room")
        forward(model, rows)

    monkeypatch.setattr(capture_module, "forward_hidden", small_memory)
    halved: list[tuple[int, int]] = []
    got = capture_unit(
        *arguments,
        components=COMPONENTS,
        batch_tokens=10_000,
        on_halved=lambda n, half: halved.append((n, half)),
    )
    assert halved == [(4, 2), (2, 1), (2, 1)]
    for position, sites in whole.items():
        for key, rows in sites.items():
            assert deviation(got[position][key], rows) < 1e-5


def test_a_prompt_too_large_for_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = from_parts(tiny("qwen3"))
    token_ids = prompts()

    def no_memory(model: Any, rows: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(capture_module, "forward_hidden", no_memory)
    with pytest.raises(CaptureError, match=r"single prompt does not fit.*prompt 1 of 23 tokens.*bfloat16"):
        capture_unit(lm, token_ids, [1, 2], places(token_ids), components=("resid",), batch_tokens=10_000)


def test_activations_that_are_not_finite_are_refused() -> None:
    model = tiny("qwen3")
    lm = from_parts(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = float("inf")
    token_ids = prompts()
    with pytest.raises(CaptureError, match=r"not finite.*mlp_out, layer 1.*prompt 0.*check that the weights"):
        capture_unit(lm, token_ids, [0], places(token_ids), components=("mlp_out",), batch_tokens=10_000)
