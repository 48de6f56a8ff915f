"""Packed passes and attention over cached keys, against dense attention and Hugging Face's own cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny
from torch import Tensor, nn

from engine.errors import PatchError
from engine.models.taps import ModelTaps, taps
from engine.passes.attention import NAME, PackedRun, RowsRun, Scoring, configured_modules, packed_attention
from engine.passes.packed import Pack, capture_pack

LENGTHS = (7, 3, 10)
POSITIONS = (2, 0, 9)
READS = (6, 2, 9)


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=length)[0].tolist() for length in LENGTHS]


def captured(found: ModelTaps, ids: Sequence[Sequence[int]] | None = None) -> Pack:
    modules = configured_modules(found.model)
    with torch.inference_mode():
        return capture_pack(found, modules, prompts() if ids is None else ids, POSITIONS, READS)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "phi3"])
def test_keys_values_and_states_are_those_of_single_prompts(family: str) -> None:
    model = tiny(family)
    found = taps(model)
    pack = captured(found)
    rows = []
    for prompt, ids in enumerate(prompts()):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), use_cache=True, output_hidden_states=True)
        place = slice(pack.starts[prompt], pack.starts[prompt] + len(ids))
        for layer in found.layers:
            cache = out.past_key_values.layers[layer.index]
            kept = min(len(ids), cache.keys.shape[2])  # a sliding layer's cache forgets
            for ours, theirs in ((pack.keys, cache.keys), (pack.values, cache.values)):
                got = ours[id(layer.attn)][place][-kept:].transpose(0, 1)
                torch.testing.assert_close(got, theirs[0, :, -kept:], rtol=1e-4, atol=1e-5)
        tail = slice(pack.tail_starts[prompt], pack.tail_starts[prompt] + pack.tails[prompt])
        rows.append(tail)
        for state in range(found.n_layers):
            expected = out.hidden_states[state][0, POSITIONS[prompt] : READS[prompt] + 1]
            torch.testing.assert_close(pack.states[state][tail], expected, rtol=1e-4, atol=1e-5)
        final = out.hidden_states[-1][0, READS[prompt]]
        torch.testing.assert_close(pack.final[prompt], final, rtol=1e-4, atol=1e-5)
    assert rows[-1].stop == len(pack.states[0]) == 5 + 3 + 1
    assert pack.nbytes() > sum(LENGTHS) * found.n_layers * 2 * found.n_kv_heads * found.head_dim * 4


def test_a_prompt_of_one_token_and_arguments_cut_to_the_tail() -> None:
    found = taps(tiny("qwen3"))
    modules = configured_modules(found.model)
    with torch.inference_mode():
        one = capture_pack(found, modules, [[5]], [0], [0])
    args, kwargs = one.calls[1].at(torch.tensor([0, 0, 0]), {})
    assert args == ()
    cos, sin = kwargs["position_embeddings"]
    assert cos.shape == sin.shape == (1, 3, found.head_dim)
    pack = captured(found)
    cos = pack.calls[0].at(torch.tensor([0, 5]), {})[1]["position_embeddings"][0]
    with torch.no_grad():
        every, _ = found.decoder.rotary_emb(torch.zeros(1, 1, 1), torch.arange(10)[None])  # type: ignore[operator]
    # Tail rows 0 and 5 are the patched tokens of prompts 0 and 1.
    torch.testing.assert_close(cos[0], every[0, [POSITIONS[0], POSITIONS[1]]])


def dense(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
    """Causal attention of a whole sequence, one query at a time: (h, t, w), (g, t, w) -> (t, h, w)."""
    group = len(q) // len(k)
    out = torch.empty(q.shape[1], len(q), v.shape[-1])
    for step in range(q.shape[1]):
        first = 0 if scoring.window is None else max(0, step + 1 - scoring.window)
        for head in range(len(q)):
            scores = k[head // group, first : step + 1] @ q[head, step] * scoring.scale
            if scoring.softcap is not None:
                scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
            out[step, head] = scores.softmax(0) @ v[head // group, first : step + 1]
    return out


SCORINGS = [
    Scoring(0.5, None, None),
    Scoring(0.5, 4, None),
    Scoring(0.3, None, 2.0),
    Scoring(0.3, 3, 2.0),
    Scoring(1.0, 1, None),
]


@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
@pytest.mark.parametrize(("prefix", "tail"), [((5, 0, 8), 1), ((5, 0, 8), 3), ((0, 0), 2), ((4,), 6)])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_rows_on_cached_keys_equal_dense_attention(
    scoring: Scoring, prefix: tuple[int, ...], tail: int, heads: int, groups: int
) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 2

    module, width, variants = nn.Identity(), 8, 3
    lengths = [length + tail for length in prefix]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    cached_k, cached_v = draw(sum(lengths), groups, width), draw(sum(lengths), groups, width)
    shape = (len(prefix), variants, tail)
    q, k, v = draw(heads, *shape, width), draw(groups, *shape, width), draw(groups, *shape, width)
    run = RowsRun(variants, tail, starts, prefix, {id(module): cached_k}, {id(module): cached_v})
    rows = [tensor.flatten(1, 3)[None] for tensor in (q, k, v)]
    got = run.attend(module, rows[0], rows[1], rows[2], scoring).view(*shape, heads, width)
    for prompt, start in enumerate(starts):
        past = slice(start, start + prefix[prompt])
        for variant in range(variants):
            keys = torch.cat([cached_k[past].transpose(0, 1), k[:, prompt, variant]], dim=1)
            values = torch.cat([cached_v[past].transpose(0, 1), v[:, prompt, variant]], dim=1)
            queries = torch.cat([draw(heads, prefix[prompt], width), q[:, prompt, variant]], dim=1)
            expected = dense(queries, keys, values, scoring)[prefix[prompt] :]
            torch.testing.assert_close(got[prompt, variant], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
def test_packed_segments_equal_dense_attention(scoring: Scoring) -> None:
    generator = torch.Generator().manual_seed(2)
    total = sum(LENGTHS)
    q = torch.randn(1, 4, total, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, total, 8, generator=generator)
    got = PackedRun(LENGTHS).attend(nn.Identity(), q, k, v, scoring)
    start = 0
    for length in LENGTHS:
        place = slice(start, start + length)
        expected = dense(q[0, :, place], k[0, :, place], v[0, :, place], scoring)
        torch.testing.assert_close(got[0, place], expected, rtol=1e-4, atol=1e-5)
        start += length


def test_attention_that_the_engine_does_not_know_is_refused() -> None:
    model = tiny("qwen3")
    attention = model.model.layers[0].self_attn
    modules = configured_modules(model)
    assert attention in modules
    assert model.model in modules
    run = PackedRun((2,))
    inputs: dict[str, Any] = {"hidden_states": torch.zeros(1, 2, 32), "attention_mask": None}
    inputs["position_embeddings"] = model.model.rotary_emb(torch.zeros(1, 2, 1), torch.arange(2)[None])
    with packed_attention(modules, run):
        assert attention.config._attn_implementation == NAME
        attention(**inputs)
        with pytest.raises(PatchError, match=r"cannot be run on packed tokens.*'sinks'"):
            attention(**inputs, sinks=torch.zeros(4))
        with pytest.raises(PatchError, match="a mask or dropout"):
            attention(**{**inputs, "attention_mask": torch.zeros(1, 1, 2, 2)})
    assert attention.config._attn_implementation == "sdpa"
    model.set_attn_implementation(NAME)
    with pytest.raises(PatchError, match="outside a patch run"):
        attention(**inputs)
