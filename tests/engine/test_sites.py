from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILY_NAMES, LATER_NAMES, LAYERS, VOCAB, random_tokens, tiny

from engine.errors import ModelError, SiteError
from engine.models.families import FAMILIES, family_of
from engine.models.sites import COMPONENTS, Site, first_tensor, record, replace_first, states_of, taps

HEADED = st.sets(st.integers(0, 40), min_size=1, max_size=5).map(tuple)


@settings(deadline=None)
@given(st.sampled_from(COMPONENTS), st.integers(0, 200), st.none() | HEADED)
def test_a_site_survives_its_text(component: str, layer: int, heads: tuple[int, ...] | None) -> None:
    site = Site(component, layer, heads if component.startswith("head") else None)
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    "text", ["", "resid_post", "resid_post@-1", "resid_post@x", "head_z@1:", "mlp_out@1:2"]
)
def test_text_that_names_no_site_is_refused(text: str) -> None:
    with pytest.raises(SiteError, match=r"could not be read|has no heads"):
        Site.parse(text)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("resid", 0), r"no component 'resid'.*resid_pre"),
        (("mlp_out", -1), r"absolute block index"),
        (("head_z", 0, (1, 1)), r"distinct indices"),
        (("head_z", 0, ()), r"at least one"),
    ],
)
def test_impossible_sites_are_refused(arguments: tuple[Any, ...], pattern: str) -> None:
    with pytest.raises(SiteError, match=pattern):
        Site(*arguments)


def test_sites_are_checked_against_the_model() -> None:
    llama, gemma = taps(tiny("llama")), taps(tiny("gemma2"))
    assert Site("head_out", 2, (3, 0)).check(llama).heads == (0, 3)
    with pytest.raises(SiteError, match=r"Layer 3 is out of range.*0 to 2"):
        Site("resid_post", 3).check(llama)
    with pytest.raises(SiteError, match=r"Head 4 is out of range.*0 to 3"):
        Site("head_z", 0, (4,)).check(llama)
    with pytest.raises(SiteError, match=r"head_out does not exist here.*head_z or attn_out"):
        Site("head_out", 0).check(gemma)
    assert Site("head_z", 0, (1, 2)).check(gemma).width(gemma) == 2 * 16
    assert Site("head_z", 0).width(gemma) == 64
    assert Site("attn_out", 0).width(gemma) == 32


def test_every_known_family_has_a_tiny_model() -> None:
    later = {name.split()[0] for name in LATER_NAMES}
    assert set(FAMILIES) == {*FAMILY_NAMES, *later, "gemma3"}


def test_an_unknown_family_is_refused_with_all_known_ones() -> None:
    with pytest.raises(ModelError) as caught:
        family_of(SimpleNamespace(model_type="mamba"))
    assert all(name in str(caught.value) for name in FAMILIES)


def test_a_model_without_the_familys_parts_is_refused() -> None:
    model = tiny("llama")
    del model.model.layers[1].mlp
    with pytest.raises(ModelError, match=r"llama model has no 'mlp' in its LlamaDecoderLayer.*self_attn"):
        taps(model)


def test_recording_keeps_only_what_was_asked_for() -> None:
    model = taps(tiny("qwen3"))
    tokens = random_tokens(2, 7)
    with record(model, ("resid", "head_z"), layers=[1]) as seen:
        model.model(tokens)
    assert set(seen) == {("resid", 1), ("resid", 2), ("head_z", 1)}
    assert seen["head_z", 1].shape == (2, 7, 64)
    assert states_of([0, 2, 3]) == (0, 1, 2, 3, 4)


def test_select_is_applied_inside_the_hook_and_before_the_multiplier() -> None:
    model = taps(tiny("granite"))
    tokens = random_tokens(2, 7)
    parts = ("resid", "attn_out", "mlp_out", "head_z")
    with record(model, parts) as whole:
        model.model(tokens)
    with record(model, parts, select=lambda value: value[:, -1]) as last:
        model.model(tokens)
    assert whole.keys() == last.keys()
    for key, value in whole.items():
        assert torch.equal(value[:, -1], last[key]), key


def test_recording_changes_nothing_and_leaves_no_hooks_behind() -> None:
    model = taps(tiny("gpt_neox"))
    tokens = random_tokens(1, 7)
    plain = model.model(tokens).logits
    with record(model) as seen:
        assert torch.equal(model.model(tokens).logits, plain)
    count = len(seen)
    seen.clear()
    model.model(tokens)
    assert not seen
    assert count == 4 * LAYERS + 1
    with pytest.raises(RuntimeError, match="stop"), record(model) as seen:
        raise RuntimeError("stop")
    model.model(tokens)
    assert not seen


def test_what_cannot_be_recorded_is_refused_before_any_hook_stays() -> None:
    model = taps(tiny("llama"))
    with (
        pytest.raises(SiteError, match=r"'head_out' cannot be recorded"),
        record(model, ("resid", "head_out")),
    ):
        pass
    with pytest.raises(SiteError, match=r"Layer 3 is out of range"), record(model, layers=[0, 3]):
        pass
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
    assert sum(hooks) == 0


def test_tensors_and_tuples_are_both_handled() -> None:
    value, other = torch.zeros(2), torch.ones(2)
    assert first_tensor(value) is value
    assert first_tensor((value, None)) is value
    assert replace_first((value, None), other) == (other, None)
    assert replace_first([value, 1], other) == [other, 1]
    assert replace_first(value, other) is other
    with pytest.raises(SiteError, match="no tensor"):
        first_tensor((None, value))


@pytest.mark.parametrize("family", [*FAMILY_NAMES, "gemma3"])
def test_widths_are_the_models_own(family: str) -> None:
    model = taps(tiny(family))
    layer = model.layers[0]
    g = model.n_kv_heads
    assert (model.d, model.n_layers, model.vocab) == (32, LAYERS, VOCAB)
    assert layer.w_o().shape == (4, model.head_dim, 32)
    assert layer.w_q().shape == (4, model.head_dim, 32)
    assert layer.w_k().shape == layer.w_v().shape == (g, model.head_dim, 32)
    assert model.z_width == 4 * model.head_dim
    unembedding, embed = model.unembedding.state_dict(), model.embed.state_dict()
    assert model.tied == (unembedding["weight"].data_ptr() == embed["weight"].data_ptr())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_norms_gain_is_what_it_multiplies_by(family: str) -> None:
    """A norm of a vector whose norm-statistics are known: the gain is the ratio of output to input."""
    model = taps(tiny(family))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, generator=generator)
    x = (x - x.mean()) / x.std(correction=0)  # mean 0 and mean square 1: every norm leaves it as it is
    norms: list[Any] = [model.final_norm, model.layers[1].input_norm, model.layers[1].mlp_norm]
    for norm in norms:
        if norm is None:
            continue
        bias = model.norm_bias(norm)
        expected = x * model.gain(norm) + (0.0 if bias is None else bias)
        # eps of the norms (1e-5 or 1e-6) enters as half of itself
        torch.testing.assert_close(norm(x[None])[0], expected, rtol=1e-5, atol=1e-5)
