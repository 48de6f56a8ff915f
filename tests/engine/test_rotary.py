"""Scaled rotary positions against plain Hugging Face: every prompt is what it is alone, in any company."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from patch_oracle import patched
from tiny_models import tiny, tiny_config

from engine.errors import PatchError
from engine.models.loading import LoadedModel, from_parts
from engine.models.rotary import reach_of, switch_of
from engine.models.sites import Site
from engine.passes.attribution import gradients
from engine.passes.batching import batches, sides
from engine.passes.capture import capture_unit
from engine.passes.continuations import score
from engine.passes.edits import replace_at
from engine.passes.generate import generate
from engine.passes.patch_engine import PatchEngine
from engine.passes.rounding import last_tokens, measure_noise
from engine.passes.self_checks import check_capture
from engine.subspaces.capture import capture_streams
from engine.weight_steering.effects import effects

SWITCH = 12
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.5, 3, 6, 12]}
LENGTHS = (20, 13, 12, 11, 5)
IDS = [
    torch.randint(3, 101, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in LENGTHS
]


def settings(family: str) -> dict[str, Any]:
    scaling = LONG | {"original_max_position_embeddings": SWITCH}
    if family == "phi3":
        return {"original_max_position_embeddings": SWITCH, "rope_parameters": scaling}
    if family == "phimoe":
        return {"rope_parameters": scaling | {"short_mscale": 1.1, "long_mscale": 1.3}}
    return {"rope_parameters": scaling}


@pytest.fixture(scope="module", params=["phi3", "llama", "phimoe"])
def lm(request: pytest.FixtureRequest) -> LoadedModel:
    return from_parts(tiny(request.param, **settings(request.param)))


def alone(lm: LoadedModel, ids: list[int]) -> Any:
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True)


def test_the_switch_matters(lm: LoadedModel) -> None:
    """Else nothing below would say anything: a short prompt beside a long one is another prompt."""
    assert lm.taps.rotary_switch == SWITCH
    short = alone(lm, IDS[4]).logits[0, -1]
    padded = torch.tensor([IDS[4] + [0] * 10])
    with torch.no_grad():
        beside = lm.model(input_ids=padded).logits[0, 4]
    assert float((short - beside).abs().max()) > 1e-2


def test_captured_rows_are_those_of_each_prompt_alone(lm: LoadedModel) -> None:
    where = {"decision": last_tokens(IDS)}
    found = capture_unit(lm, IDS, range(5), where, components=["resid"], batch_tokens=10_000)["decision"]
    for row, ids in enumerate(IDS):
        states = alone(lm, ids).hidden_states
        for layer in range(lm.taps.n_layers):
            np.testing.assert_allclose(found["resid", layer][row], states[layer][0, -1], atol=1e-5)
    streams = capture_streams(lm, IDS, 10_000)
    np.testing.assert_allclose(streams.last[-1], found["resid", lm.taps.n_layers], atol=1e-5)
    assert all(check.passed for check in check_capture(lm, IDS, measure_noise(lm, IDS)))


@pytest.mark.parametrize("read_at", ["patched", "decision"])
def test_patched_runs_are_those_of_each_prompt_alone(lm: LoadedModel, read_at: Any) -> None:
    """Patched tokens of long prompts lie before the switch too: what is cut off behind them counts."""
    positions = [4, 12, 6, 10, 2]
    engine = PatchEngine(lm, IDS, positions, read_at=read_at)
    site = Site("resid_post", 1)
    vectors = torch.randn(2, 5, lm.taps.d, generator=torch.Generator().manual_seed(0))
    found = engine.sweep(site, vectors.numpy(), n_conditions=2)
    own = engine.activations(site)
    for row, (ids, position) in enumerate(zip(IDS, positions, strict=True)):
        read = position if read_at == "patched" else len(ids) - 1
        plain = alone(lm, ids)
        torch.testing.assert_close(own[row], plain.hidden_states[2][0, position], atol=1e-5, rtol=1e-5)
        before = plain.logits[0, read].double().log_softmax(-1)
        for condition in range(2):
            with patched(lm.taps, site, position, vectors[condition, row][None]), torch.no_grad():
                after = lm.model(input_ids=torch.tensor([ids])).logits[0, read].double().log_softmax(-1)
            kl = float((after.exp() * (after - before)).sum())
            assert float(found.kl[condition, row]) == pytest.approx(kl, rel=1e-4, abs=1e-6)


def test_gradients_are_those_of_the_whole_prompt(lm: LoadedModel) -> None:
    positions = [4, 12, 6, 10, 2]
    found = gradients(lm, IDS, positions, positions, [0])
    for row, (ids, position) in enumerate(zip(IDS, positions, strict=True)):
        best = alone(lm, ids).logits[0, position].log_softmax(-1).max()
        assert float(found.log_prob[row]) == pytest.approx(float(best), abs=1e-4)


def test_answers_are_those_of_transformers(lm: LoadedModel) -> None:
    """Prompts away from the switch, some run in two parts of which the first is short."""
    ids, new = [IDS[0], IDS[1], IDS[4]], 5
    width, none = lm.taps.d, torch.zeros(3, lm.taps.d)
    edit = replace_at(Site("mlp_out", 2), [3, 3, 3], none)
    made = generate(lm, ids, (None, edit), max_new_tokens=new, stop=())
    for row, prompt in enumerate(ids):
        own = lm.model.generate(
            torch.tensor([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert made.tokens[0][row] == own[0, len(prompt) :].tolist()
        with patched(lm.taps, Site("mlp_out", 2), 3, torch.zeros(1, width)), torch.no_grad():
            first = int(lm.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
        assert made.tokens[1][row][0] == first
    scored = score(lm, ids, [[[7, 8]], [[9]], [[5, 6]]])
    for row, (prompt, more) in enumerate(zip(ids, ([7, 8], [9], [5, 6]), strict=True)):
        logits = alone(lm, prompt + more).logits[0].double().log_softmax(-1)
        wanted = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(more)]
        np.testing.assert_allclose(scored.log_probs[0][row][0], wanted, atol=1e-4)


def test_an_answer_that_would_cross_the_switch_is_refused(lm: LoadedModel) -> None:
    with pytest.raises(PatchError, match=r"LongRoPE.*2 such prompts"):
        generate(lm, IDS[1:], max_new_tokens=5)


def test_perplexities_are_those_of_each_prompt_alone(lm: LoadedModel) -> None:
    found = effects(lm, IDS, [(None, 0.0)])
    for row, ids in enumerate(IDS):
        logits = alone(lm, ids).logits[0, :-1].double().log_softmax(-1)
        nll = -float(logits.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        assert found.nll[0, row] == pytest.approx(nll, abs=1e-3)


def test_no_batch_holds_both_sides() -> None:
    lengths = [20, 13, 12, 12, 11]
    assert batches(lengths, 1000, 12) == [[0], [1], [2, 3, 4]]
    assert batches(lengths, 1000) == [[0], [1, 2, 3, 4]]
    assert sides([3, 14, 12], 12) == [[0, 2], [1]]
    assert sides([3, 14], None) == [[0, 1]]


SCALINGS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({"rope_type": "default"}, 128),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 128),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 128),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        128,
    ),
    "yarn, stated": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    "yarn, put on later": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        512,
    ),
    "yarn without original": ({"rope_type": "yarn", "factor": 4.0}, 512),
}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("name", SCALINGS)
def test_the_length_that_positions_reach(name: str, spelling: str) -> None:
    scaling, reach = SCALINGS[name]
    given = {"rope_theta": 1e4, **scaling}
    if spelling == "rope_scaling":
        given["type"] = given.pop("rope_type")
        config = tiny_config("llama", rope_scaling=given, rope_theta=1e4)
    else:
        config = tiny_config("llama", rope_parameters=given)
    assert reach_of(config) == reach
    assert switch_of(config) is None


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "plain"])
def test_up_to_that_length_no_prompt_depends_on_another(name: str) -> None:
    """The oracle of the table above: a batch's longest prompt leaves the others as they are."""
    scaling, reach = SCALINGS[name]
    lm = from_parts(tiny("llama", rope_parameters={"rope_theta": 1e4, **scaling}))
    short = list(range(3, 13))
    with torch.no_grad():
        own = lm.model(input_ids=torch.tensor([short])).logits[0]
        padded = torch.tensor([short + [0] * (reach - 10)])
        beside = lm.model(input_ids=padded).logits[0, :10]
    torch.testing.assert_close(own, beside, atol=1e-4, rtol=1e-4)


def test_kinds_of_layers_with_settings_of_their_own() -> None:
    nested = {
        "full_attention": LONG | {"original_max_position_embeddings": SWITCH},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = tiny_config("gemma3_text", rope_parameters=nested)
    assert switch_of(config) == SWITCH


def test_turning_is_undone(lm: LoadedModel) -> None:
    before = alone(lm, IDS[4]).logits
    PatchEngine(lm, IDS, [1] * 5)
    assert torch.equal(alone(lm, IDS[4]).logits, before)
    assert isinstance(lm.lock, type(threading.Lock()))
