"""Gradients and direct attribution against differences of whole forward passes, in double precision."""

from __future__ import annotations

import numpy as np
import patch_oracle
import pytest
import torch
from tiny_models import random_tokens, tiny
from torch import Tensor

from engine.errors import JobError
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site, first_tensor, replace_first
from engine.passes.attribution import gradients
from engine.passes.patch_engine import PatchEngine

LENGTHS, POSITIONS, READS = (9, 14, 5), (6, 13, 0), (8, 13, 4)
LAYERS = (0, 2)


def ids() -> list[list[int]]:
    return [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def model(family: str) -> LoadedModel:
    """A loaded model whose weights are then kept in double precision."""
    lm = from_parts(tiny(family))
    lm.model.double()
    return lm


def log_p(lm: LoadedModel, prompt: int, layer: int, push: Tensor, token: int) -> float:
    """log p(token) with `push` added to the output projection's result at the patched token."""

    def hook(_module: object, _args: object, output: object) -> object:
        value = first_tensor(output).clone()
        value[:, POSITIONS[prompt]] += push
        return replace_first(output, value)

    handle = lm.taps.layers[layer].o_proj.register_forward_hook(hook)
    try:
        return float(patch_oracle.log_probs(lm.model, ids()[prompt], READS[prompt])[0, token])
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "granite", "gpt2", "gpt_neox", "cohere"])
def test_gradients_are_differences_of_whole_passes(family: str) -> None:
    lm = model(family)
    found = gradients(lm, ids(), POSITIONS, READS, LAYERS)
    generator = torch.Generator().manual_seed(0)
    for prompt in range(len(LENGTHS)):
        plain = patch_oracle.log_probs(lm.model, ids()[prompt], READS[prompt])[0]
        assert int(found.token[prompt]) == int(plain.argmax())
        assert float(found.log_prob[prompt]) == pytest.approx(float(plain.max()), abs=1e-5)
        for layer in LAYERS:
            push = torch.randn(lm.taps.d, generator=generator, dtype=torch.float64) * 1e-2
            up, down = (log_p(lm, prompt, layer, s * push, int(found.token[prompt])) for s in (1, -1))
            predicted = float(found.at_output[layer][prompt].double() @ push)
            # RMS norms work in float32 whatever the weights are: 1e-7 of a log-probability of about 5
            assert predicted == pytest.approx((up - down) / 2, rel=5e-3, abs=2e-6)


def frozen(lm: LoadedModel, prompt: int, push: Tensor, token: int) -> float:
    """log p(token) with `push` added before the final norm, whose statistics stay the unpatched ones."""
    norm, seen = lm.taps.final_norm, {}
    handle = norm.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    patch_oracle.log_probs(lm.model, ids()[prompt], READS[prompt])
    handle.remove()
    x = seen["x"][0, READS[prompt]]
    centre = "gpt" in lm.taps.family.name or "cohere" in lm.taps.family.name
    gain, bias = lm.taps.gain(norm).double(), lm.taps.norm_bias(norm)
    centred = x - x.mean() if centre else x
    scale = centred.pow(2).mean().add(1e-12).rsqrt()
    pushed = push - push.mean() if centre else push
    normed = gain * (centred + pushed) * scale + (0.0 if bias is None else bias.double())
    return float(lm.taps.logits(normed).log_softmax(-1)[token])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "cohere"])
def test_direct_attribution_is_the_frozen_norm_and_the_unembedding(family: str) -> None:
    lm = model(family)
    found = gradients(lm, ids(), POSITIONS, READS, LAYERS)
    prompt = 1
    push = torch.randn(lm.taps.d, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 1e-5
    up, down = (frozen(lm, prompt, s * push, int(found.token[prompt])) for s in (1, -1))
    # the norms' epsilon of 1e-5 or 1e-6 beside a mean square of about one
    assert float(found.direct[prompt].double() @ push) == pytest.approx((up - down) / 2, rel=2e-3)


def test_direct_attribution_is_zero_where_another_token_is_read() -> None:
    found = gradients(model("llama"), ids(), POSITIONS, READS, LAYERS)
    assert (found.direct.abs().sum(1) > 0).tolist() == [p == r for p, r in zip(POSITIONS, READS, strict=True)]


def test_behind_the_last_block_only_the_slope_of_the_norm_is_left_out() -> None:
    """d/dx of (x − mean x)·s(x) has one term more than the frozen norm, along the centred stream."""
    lm, seen = model("gpt_neox"), {}  # parallel: the last block's attention meets no MLP
    found = gradients(lm, ids(), POSITIONS, READS, LAYERS)
    handle = lm.taps.final_norm.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    patch_oracle.log_probs(lm.model, ids()[1], READS[1])
    handle.remove()
    stream = seen["x"][0, READS[1]].double()
    along = (stream - stream.mean()) / (stream - stream.mean()).norm()
    direct, whole = found.direct[1].double(), found.at_output[2][1].double()
    torch.testing.assert_close(whole, direct - along * (along @ direct), rtol=1e-4, atol=1e-6)


def test_batches_hooks_and_gradients_leave_no_trace() -> None:
    lm = from_parts(tiny("llama"))
    one = gradients(lm, ids(), POSITIONS, READS, LAYERS)
    many = gradients(lm, ids(), POSITIONS, READS, LAYERS, batch_tokens=1)
    # float32: padded and single rows are summed in another order
    for layer in LAYERS:
        torch.testing.assert_close(one.at_output[layer], many.at_output[layer], rtol=1e-3, atol=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())


def test_first_order_predicts_a_small_patch() -> None:
    """The same Δu as a patch of attn_out: m moves by what the gradient says."""
    lm = from_parts(tiny("llama"))
    found = gradients(lm, ids(), POSITIONS, READS, (1,))
    engine = PatchEngine(lm, ids(), POSITIONS, read_at="decision")
    site = Site("attn_out", 1)
    own = engine.activations(site)
    push = 1e-3 * torch.randn(own.shape, generator=torch.Generator().manual_seed(3))
    swept = engine.sweep(site, torch.stack([own + push, own - push]), n_conditions=2, top_k=101)
    assert swept.top_ids is not None
    assert swept.top_log_probs is not None
    for prompt in range(len(LENGTHS)):
        place = np.argmax(swept.top_ids[:, prompt] == int(found.token[prompt]), axis=1)
        up, down = (float(swept.top_log_probs[c, prompt, place[c]]) for c in (0, 1))
        predicted = float((found.at_output[1][prompt] * push[prompt]).sum())
        # float32 log-probabilities near -5 carry 1e-6
        assert predicted == pytest.approx((up - down) / 2, rel=0.02, abs=2e-6)


def test_it_can_be_cancelled() -> None:
    with pytest.raises(JobError, match="cancelled"):
        gradients(from_parts(tiny("llama")), ids(), POSITIONS, READS, (1,), should_stop=lambda: True)
