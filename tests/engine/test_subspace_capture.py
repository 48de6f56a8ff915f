"""What is captured for subspace scores, against eager attention, merged weights and the modules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILY_NAMES, LAYERS, changed, random_tokens, tiny

from engine.errors import CaptureError
from engine.models.loading import from_parts
from engine.models.sites import record
from engine.subspaces.capture import capture_labels, capture_streams, last_states, packs
from engine.subspaces.checks import check_label, check_streams, merged
from engine.subspaces.gates import ACTIVATIONS
from engine.subspaces.weights import mlp_weights, subspace_weights, weight_shapes
from engine.weights.deltas import weight_deltas

LENGTHS = (17, 9, 13, 2)
PROMPTS = [random_tokens(1, n, seed=n)[0].tolist() for n in LENGTHS]
EXPERTS = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe")
UNGATED = ("gpt2", "gpt_neox", "phi", "starcoder2", "nemotron")
ROUNDING = 2e-5
"""Of a few blocks in float32, sums in another order; streams here are of size 1 to 30."""


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_streams_and_last_attention_are_those_of_eager_attention(family: str) -> None:
    """Prompts of several windows' length and shorter ones, in two packs."""
    found = capture_streams(from_parts(tiny(family)), PROMPTS, batch_tokens=30)
    eager = from_parts(tiny(family, attn_implementation="eager"))
    start = 0
    for number, ids in enumerate(PROMPTS):
        with record(eager.taps, ("resid_post", "mlp_in")) as kept, torch.no_grad():
            output = eager.model(input_ids=torch.tensor([ids]), output_attentions=True)
        here = slice(start, start + len(ids))
        for layer in range(LAYERS):
            weights = output.attentions[layer][0, :, -1].mean(0).numpy()
            np.testing.assert_allclose(found.attention[layer, here], weights, atol=1e-6)
            stream = kept["resid_post", layer][0].numpy()
            np.testing.assert_allclose(found.tokens[layer, here], stream, atol=ROUNDING, rtol=1e-5)
            np.testing.assert_array_equal(found.last[layer, number], found.tokens[layer, here][-1])
            read = kept["mlp_in", layer][0, -1].numpy()
            np.testing.assert_allclose(found.mlp_input[layer, number], read, atol=ROUNDING, rtol=1e-5)
        start += len(ids)
    assert found.attention.shape == (LAYERS, start)
    assert np.ptp(found.attention) > 0.1


def test_a_window_hides_what_lies_before_it() -> None:
    """Mistral's window is 6 tokens here, and the test above would not notice if both sides ignored it."""
    found = capture_streams(from_parts(tiny("mistral")), PROMPTS[:1], 4096).attention
    assert (found[:, :-6] == 0).all()
    assert (found[:, -6:] > 0).all()


def test_the_mlp_input_is_what_its_first_projection_receives() -> None:
    for family, name in (("qwen3", "up_proj"), ("gpt2", "c_fc"), ("gpt_neox", "dense_h_to_4h")):
        lm = from_parts(tiny(family))
        seen: list[np.ndarray] = []
        projection = getattr(lm.taps.layers[1].mlp, name)
        hook = projection.register_forward_pre_hook(
            lambda _module, args, seen=seen: seen.append(args[0][0, -1].numpy())
        )
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([PROMPTS[0]]))
        hook.remove()
        found = capture_streams(lm, PROMPTS[:1], 4096).mlp_input[1, 0]
        np.testing.assert_allclose(found, seen[0], atol=ROUNDING, rtol=1e-5)


def test_packs_hold_as_many_prompts_as_fit() -> None:
    assert packs(PROMPTS, 30) == [range(2), range(2, 4)]
    assert packs(PROMPTS, 4096) == [range(4)]
    assert packs(PROMPTS, 1) == [range(i, i + 1) for i in range(4)]  # a longer prompt alone
    lm = from_parts(tiny("qwen3"))
    one, many = capture_streams(lm, PROMPTS, 1), capture_streams(lm, PROMPTS, 4096)
    np.testing.assert_allclose(one.tokens, many.tokens, atol=ROUNDING, rtol=1e-5)
    np.testing.assert_allclose(one.attention, many.attention, atol=1e-6)


def test_overflow_is_an_error() -> None:
    lm = from_parts(tiny("llama"))
    lm.model.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(CaptureError, match="not finite"):
        capture_streams(lm, PROMPTS, 4096)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gpt2", "gpt_neox", "phi3"])
def test_the_label_is_the_difference_of_two_merged_models(family: str) -> None:
    base = tiny(family)
    tuned = changed(base)
    states = {}
    for alpha in (1.0, -1.0):
        model = copy.deepcopy(base)
        for own, other in zip(model.parameters(), tuned.parameters(), strict=True):
            own.data += alpha * (other - own.data)
        lm, rows = from_parts(model), []
        for ids in PROMPTS:
            with record(lm.taps, ("resid_post",)) as kept, torch.no_grad():
                lm.taps.decoder(input_ids=torch.tensor([ids]))
            rows.append(torch.stack([kept["resid_post", layer][0, -1] for layer in range(LAYERS)]))
        states[alpha] = torch.stack(rows, dim=1).numpy()
    lm = from_parts(base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    found = capture_labels(lm, weight_deltas(base, tuned), PROMPTS, 40)
    wanted = states[1.0] - states[-1.0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # both are differences of streams of size up to 30
    assert np.abs(wanted).max() > 0.1
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())

    deltas = list(weight_deltas(base, tuned))
    check = check_label(lm, "tuned", deltas, PROMPTS, found)
    assert check.passed, check
    assert "of the label's own length" in check.detail
    assert not check_label(lm, "tuned", deltas, PROMPTS, 1.01 * found).passed
    assert not check_label(lm, "tuned", deltas[1:], PROMPTS, found).passed
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_merge_is_undone_also_when_something_fails() -> None:
    base = tiny("qwen3")
    lm, deltas = from_parts(base), list(weight_deltas(base, changed(base)))
    before = {name: value.clone() for name, value in base.state_dict().items()}

    def fail() -> None:
        with merged(lm, deltas, 1.0):
            assert not torch.equal(lm.model.model.norm.weight, before["model.norm.weight"])
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_the_check_of_stored_streams_can_fail() -> None:
    lm = from_parts(tiny("qwen3"))
    stored = capture_streams(lm, PROMPTS, 4096).last
    assert check_streams(lm, PROMPTS, stored).passed
    assert not check_streams(lm, PROMPTS, stored[:, ::-1]).passed
    assert not check_streams(lm, PROMPTS, stored * (1 + 2.0**-9)).passed  # what bfloat16 would round by
    np.testing.assert_allclose(last_states(lm, PROMPTS, 40), stored, atol=ROUNDING, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_write_and_read_as_the_modules_do(family: str) -> None:
    """Biases off: attention's output from z, a lone token's values, and the gated MLP from its input."""
    model = tiny(family)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    lm = from_parts(model)
    found = {piece.name: piece for piece, _ in subspace_weights(lm.taps, None)}
    about = {piece.name: facts for piece, facts in subspace_weights(lm.taps, None)}
    assert {name: piece.values.shape for name, piece in found.items()} == weight_shapes(lm.taps, start=False)
    assert list(found) == list(weight_shapes(lm.taps, start=False))
    inputs: dict[tuple[str, int], torch.Tensor] = {}
    handles = []
    for layer in lm.taps.layers:
        for name, module in (("attn", layer.attn), ("mlp", layer.mlp)):

            def before(_module: Any, args: Any, kwargs: Any, key: Any = (name, layer.index)) -> None:
                inputs[key] = (args[0] if args else kwargs["hidden_states"])[0, -1]

            def after(_module: Any, _args: Any, out: Any, key: Any = (f"{name}_out", layer.index)) -> None:
                inputs[key] = (out[0] if isinstance(out, tuple) else out)[0, -1]

            handles += [module.register_forward_pre_hook(before, with_kwargs=True)]
            handles += [module.register_forward_hook(after)]
    with record(lm.taps, ("head_z",)) as kept, torch.no_grad():
        lm.model(input_ids=torch.tensor([[7]]))
    for handle in handles:
        handle.remove()
    for layer in range(LAYERS):
        z = kept["head_z", layer][0, -1].numpy()
        written = found["o_proj"].values[layer] @ z
        np.testing.assert_allclose(written, inputs["attn_out", layer].numpy(), atol=ROUNDING, rtol=1e-4)
        values = (found["v_proj"].values[layer] @ inputs["attn", layer].numpy()).reshape(
            lm.taps.n_kv_heads, 1, -1
        )
        expanded = np.repeat(values, lm.taps.n_heads // lm.taps.n_kv_heads, axis=1).ravel()
        clip = getattr(model.config, "clip_qkv", None) or np.inf
        np.testing.assert_allclose(np.clip(expanded, -clip, clip), z, atol=ROUNDING, rtol=1e-4)
        if "up_proj" not in found:
            assert family in EXPERTS
            continue
        x = inputs["mlp", layer].numpy()
        up = found["up_proj"].values[layer] @ x
        if "gate_proj" not in found:
            assert family in UNGATED
            continue
        act = ACTIVATIONS[about["gate_proj"]["activation"]]
        gate = act((found["gate_proj"].values[layer] @ x).astype(np.float64))
        made = found["down_proj"].values[layer] @ (gate * up)
        np.testing.assert_allclose(made, inputs["mlp_out", layer].numpy(), atol=ROUNDING, rtol=1e-4)


@pytest.mark.parametrize("family", UNGATED)
def test_ungated_mlps_read_and_write_as_their_projections_do(family: str) -> None:
    lm = from_parts(tiny(family))
    names = {
        "gpt2": ("c_fc", "c_proj"),
        "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
        "phi": ("fc1", "fc2"),
        "starcoder2": ("c_fc", "c_proj"),
        "nemotron": ("up_proj", "down_proj"),
    }
    for layer in lm.taps.layers:
        found = mlp_weights(layer)
        for name, module in zip(("up_proj", "down_proj"), names[family], strict=True):
            projection = getattr(layer.mlp, module)
            x = torch.randn(found[name].shape[1])
            bias = 0.0 if projection.bias is None else projection.bias
            torch.testing.assert_close(found[name] @ x + bias, projection(x))


def test_writing_tensors_are_named_and_post_norms_are_kept() -> None:
    lm = from_parts(tiny("gemma2"))
    facts = {piece.name: (piece, about) for piece, about in subspace_weights(lm.taps, 5)}
    tensors = facts["down_proj"][1]["tensors"]
    assert tensors == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(LAYERS)]
    gains = facts["mlp_write_gain"][0].values
    own = lm.model.model.layers[1].post_feedforward_layernorm.weight
    np.testing.assert_allclose(gains[1], 1 + own.numpy())
    np.testing.assert_array_equal(facts["start_embedding"][0].values, lm.taps.embed.weight[5].numpy())
    assert facts["start_embedding"][1] == {"token": 5}
    gpt2 = {piece.name: about for piece, about in subspace_weights(from_parts(tiny("gpt2")).taps, None)}
    assert gpt2["o_proj"] == {
        "tensors": [f"transformer.h.{i}.attn.c_proj.weight" for i in range(LAYERS)],
        "transposed": True,
    }


def test_weights_are_kept_as_they_are() -> None:
    """Whoever stores them may use two bytes where the model's weights fit into them, and only there."""
    model = tiny("qwen3")
    for rounded in (False, True):
        lm = from_parts(model.bfloat16().float() if rounded else model)
        for piece, _ in subspace_weights(lm.taps, None):
            assert piece.exact
            values = torch.from_numpy(piece.values)
            assert torch.equal(values.bfloat16().float(), values) is rounded


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    x = np.linspace(-8, 8, 101)
    wanted = ACT2FN[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](x), wanted, atol=1e-8)  # gelu_fast has a rounded √(2/π)
