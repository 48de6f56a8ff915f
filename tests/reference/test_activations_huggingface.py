"""Recorded activations against Hugging Face's own hidden states, attention maps and plain hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import FAMILY_NAMES, LAYERS, random_tokens, tiny
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from engine.models.loading import from_parts
from engine.models.sites import record, taps

pytestmark = pytest.mark.reference

# Everything is compared in float32, where one rounding is 6e-8 and the longest chain here (a sum over
# 48 hidden units) is off by about 5e-7; 1e-5 is the promise to the user.
LIMIT = 1e-5
ALL = [*FAMILY_NAMES, "gemma3"]

# Written from the model code of each family, independently of engine/models/families.py: the modules whose
# output is added to the residual stream, and the one whose input is z.
_PLAIN = ("self_attn", "mlp", "self_attn.o_proj")
_POST = ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj")
CONTRIBUTIONS = dict.fromkeys(ALL, _PLAIN) | {
    "gemma2": _POST,
    "gemma3": _POST,
    "gemma3_text": _POST,
    "olmo2": _POST,
    "olmo3": _POST,
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm", "self_attn.o_proj"),
    "granitemoe": ("self_attn", "block_sparse_moe", "self_attn.o_proj"),
    "phi": ("self_attn", "mlp", "self_attn.dense"),
    "gpt_neox": ("attention", "mlp", "attention.dense"),
    "gpt2": ("attn", "mlp", "attn.c_proj"),
}
BLOCKS = dict.fromkeys(ALL, "model.layers") | {
    "gemma3": "model.language_model.layers",
    "gpt_neox": "gpt_neox.layers",
    "gpt2": "transformer.h",
}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def plain_hooks(model: Any, family: str, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
    """Contributions and z through hooks on modules named by hand."""
    seen: dict[tuple[str, int], Tensor] = {}
    scale = model.config.residual_multiplier if family in ("granite", "granitemoe") else 1.0
    handles = []
    for layer in range(LAYERS):
        attn, mlp, o_proj = (
            model.get_submodule(f"{BLOCKS[family]}.{layer}.{name}") for name in CONTRIBUTIONS[family]
        )

        def keep(key: tuple[str, int]) -> Any:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                seen[key] = scale * (output[0] if isinstance(output, tuple) else output)

            return hook

        def keep_input(key: tuple[str, int]) -> Any:
            def hook(_module: Any, args: Any) -> None:
                seen[key] = args[0]

            return hook

        handles += [
            attn.register_forward_hook(keep(("attn_out", layer))),
            mlp.register_forward_hook(keep(("mlp_out", layer))),
            o_proj.register_forward_pre_hook(keep_input(("head_z", layer))),
        ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ALL)
def test_states_equal_hidden_states_and_contributions_equal_plain_hooks(family: str) -> None:
    model = tiny(family)
    found = taps(model)
    tokens = random_tokens(2, 13)
    with record(found) as seen:
        output = model(tokens, output_hidden_states=True)
    states = output.hidden_states
    assert len(states) == LAYERS + 1
    for layer in range(LAYERS):
        assert relative(seen["resid", layer], states[layer]) <= LIMIT
    # Hugging Face's last entry is after the final norm; the last state is before it
    assert relative(found.final_norm(seen["resid", LAYERS]), states[-1]) <= LIMIT
    assert relative(seen["resid", LAYERS], states[-1]) > 0.01
    for key, value in plain_hooks(model, family, tokens).items():
        assert relative(seen[key], value) <= LIMIT, key


@pytest.mark.parametrize("family", ALL)
def test_all_identities_hold(family: str) -> None:
    lm = from_parts(tiny(family))
    names = [check.name for check in lm.checks]
    assert names[:2] == ["residual identity", "stream identity"]
    assert ("heads identity" in names) == (
        family not in ("gemma2", "gemma3", "gemma3_text", "glm4", "olmo2", "olmo3")
    )
    assert all(check.value <= LIMIT for check in lm.checks)


def test_the_sequential_variant_of_neox_is_known_by_its_config() -> None:
    model = tiny("gpt_neox", use_parallel_residual=False)
    assert not taps(model).layers[0].parallel
    assert taps(tiny("gpt_neox")).layers[0].parallel
    assert all(check.value <= LIMIT for check in from_parts(model).checks)


@pytest.mark.parametrize("family", ALL)
def test_the_final_norm_and_unembedding_give_the_models_logits(family: str) -> None:
    model = tiny(family)
    found = taps(model)
    with record(found, ("resid",), layers=[LAYERS - 1]) as seen:
        logits = model(random_tokens(2, 9)).logits
    assert relative(found.logits(found.final_norm(seen["resid", LAYERS])), logits) <= LIMIT


@contextmanager
def recorded_attention(model: Any) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Runs attention over one token as what it is, the copy of its value, and keeps q, k and v."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def attend(
        _module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, **_more: Any
    ) -> tuple[Tensor, None]:
        calls.append((q[0, :, 0], k[0, :, 0], v[0, :, 0]))
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1).transpose(1, 2).contiguous(), None

    AttentionInterface.register("one_token", attend)
    AttentionMaskInterface.register("one_token", lambda *_args, **_kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("one_token")
    try:
        yield calls
    finally:
        model.set_attn_implementation(before)


FULL_WIDTH_NORM = ("olmo2", "olmo3", "olmoe")  # their q/k norms run over all heads at once


@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name not in ("olmo", "olmoe")])
def test_per_head_weights_give_the_models_own_queries_keys_and_values(family: str) -> None:
    """At position 0 rotary embeddings are the identity, so q, k and v are linear in the normed stream."""
    model = tiny(family)
    found = taps(model)
    tokens = random_tokens(1, 1)
    with record(found, ("resid_pre", "head_z")) as seen, recorded_attention(model) as calls:
        model(tokens)
    assert len(calls) == LAYERS
    for layer, (q, k, v) in zip(found.layers, calls, strict=True):
        x = seen["resid_pre", layer.index][0]
        x = (x if layer.input_norm is None else layer.input_norm(x))[0]
        biases = layer.qkv_bias()
        own = [
            torch.einsum("hed,d->he", weight, x) + (0.0 if bias is None else bias)
            for weight, bias in zip((layer.w_q(), layer.w_k(), layer.w_v()), biases, strict=True)
        ]
        for index, norm in enumerate((layer.q_norm, layer.k_norm)):
            if norm is not None:
                shape = own[index].shape
                flat = own[index].reshape(1, 1, -1) if family in FULL_WIDTH_NORM else own[index][None, None]
                own[index] = norm(flat).reshape(shape)
        for mine, theirs in zip(own, (q, k, v), strict=True):
            assert relative(mine, theirs) <= LIMIT
        z = seen["head_z", layer.index].reshape(layer.n_heads, layer.head_dim)
        groups = layer.n_heads // layer.n_kv_heads
        assert relative(own[2].repeat_interleave(groups, dim=0), z) <= LIMIT


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gpt2", "phi3", "granite"])
def test_z_is_the_attention_maps_mix_of_values(family: str) -> None:
    """Independent of o_proj's input: attention maps as Hugging Face returns them, times our values."""
    model = tiny(family, attn_implementation="eager")
    found = taps(model)
    tokens = random_tokens(1, 8)
    with record(found, ("resid_pre", "head_z")) as seen:
        attentions = model(tokens, output_attentions=True).attentions
    for layer in found.layers:
        assert layer.input_norm is not None
        x = layer.input_norm(seen["resid_pre", layer.index])[0]
        values = torch.einsum("ged,td->gte", layer.w_v(), x)
        bias = layer.qkv_bias()[2]
        values = values if bias is None else values + bias[:, None]
        values = values.repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=0)
        z = torch.einsum("hqk,hke->qhe", attentions[layer.index][0], values).flatten(1)
        assert relative(seen["head_z", layer.index][0], z) <= LIMIT
