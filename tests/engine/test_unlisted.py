"""Families without an entry: found by names, admitted when every identity holds, else refused by name."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILY_NAMES, UNLISTED_NAMES, random_tokens, tiny, tiny_config
from tiny_tokenizers import chatml
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError
from engine.models.families import FAMILIES, attention_of, family_of
from engine.models.family import REFUSED, Family
from engine.models.loading import from_parts, load
from engine.models.skeleton import planned
from engine.models.unlisted import candidates
from engine.passes import attention
from engine.study.study import ModelSpec


def same(found: Family, entry: Family, text: Any) -> bool:
    """Whether two entries say the same of a model; `attention` is said by its config instead."""
    parallel = getattr(text, entry.parallel) if isinstance(entry.parallel, str) else entry.parallel
    return found == replace(entry, parallel=parallel, attention=None)


@pytest.mark.parametrize("family", [*FAMILY_NAMES, "gemma3"])
def test_a_listed_family_is_found_again_without_its_entry(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, entry = tiny(family), FAMILIES[family]
    monkeypatch.delitem(FAMILIES, family)
    lm = from_parts(model)
    assert same(lm.taps.family, entry, model.config.get_text_config())
    assert attention_of(model.config, "sdpa") == (entry.attention or "sdpa")


@pytest.mark.parametrize("family", ["stablelm", "gpt_neox"])
@pytest.mark.parametrize("parallel", [False, True])
def test_parallel_blocks_are_told_from_sequential_ones(
    family: str, parallel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family, use_parallel_residual=parallel)
    listed = from_parts(model).taps
    monkeypatch.delitem(FAMILIES, family)
    found = from_parts(model).taps
    for own, other in zip(found.layers, listed.layers, strict=True):
        assert own.parallel == other.parallel == parallel
        assert own.mlp_norm is other.mlp_norm is not None


@pytest.mark.parametrize("family", UNLISTED_NAMES)
def test_an_unlisted_family_says_what_was_verified(family: str) -> None:
    lm = from_parts(tiny(family), info={"notes": ["another"]})
    assert all(check.passed for check in lm.checks)
    assert lm.checks[-1].name == "packed identity"
    first, *_, note = lm.info["notes"]
    assert first == "another"
    assert f"family '{family}' is not listed" in note
    assert all(check.name in note for check in lm.checks)


def test_both_layouts_of_a_fused_projection_are_found() -> None:
    heads = {"n_head": 4, "num_attention_heads": None}
    one, several = (tiny("gpt_bigcode", multi_query=multi, **heads) for multi in (True, False))
    assert from_parts(one).taps.family.qkv == "stacked"
    assert from_parts(one).taps.n_kv_heads == 1
    assert from_parts(several).taps.family.qkv == "interleaved"


def test_candidates_need_no_weights() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("gemma"))
    assert same(candidates(model)[0], FAMILIES["gemma"], model.config)


def test_what_fails_an_identity_is_refused_with_its_name() -> None:
    model = tiny("arcee")
    model.model.layers[1].register_forward_hook(lambda _m, args, out: out + 0.1 * args[0])
    with pytest.raises(ModelError, match=r"'arcee' is not known.*it fails the residual identity"):
        from_parts(model)
    model = tiny("arcee")
    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: (args[0] * 1.5,))
    with pytest.raises(ModelError, match=r"'arcee' is not known.*it fails the values identity"):
        from_parts(model)
    model = tiny("arcee")
    model.model.layers[1].mlp.register_forward_pre_hook(lambda _m, args: (args[0] * 1.5,))
    with pytest.raises(ModelError, match=r"'arcee' is not known.*it fails the inputs identity"):
        from_parts(model)


def test_what_fails_the_packed_identity_reruns_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, segment = from_parts(tiny("arcee")), attention._segment
    assert plain.taps.family.packs
    assert plain.checks[-1].passed
    monkeypatch.setattr(attention, "_segment", lambda q, k, v, scoring: 1.01 * segment(q, k, v, scoring))
    found = from_parts(tiny("arcee"))
    assert not found.taps.family.packs
    assert all(check.passed for check in found.checks)
    assert any("can't be run on packed tokens" in note for note in found.info["notes"])


def test_parts_without_a_usual_name_are_named() -> None:
    def renamed(path: str, name: str) -> Any:
        model = tiny("arcee")
        parent = model.get_submodule(path)
        parent._modules["thing"] = parent._modules.pop(name)
        return model

    for path, name, says in (
        ("model", "layers", "no list of blocks"),
        ("model", "norm", "no final norm"),
        ("model.layers.1", "self_attn", r"no attention of the name 'self_attn'.*its parts: .*thing"),
        ("model.layers.2", "mlp", "no MLP of the name 'mlp'"),
        ("model.layers.0", "input_layernorm", "norms have no usual names"),
        ("model.layers.0.self_attn", "o_proj", "no output projection of the name 'o_proj'"),
        ("model.layers.0.self_attn", "v_proj", "no query, key and value projection"),
    ):
        with pytest.raises(ModelError, match=rf"'arcee' is not known.*{says}"):
            candidates(renamed(path, name))


def test_norms_of_two_kinds_are_refused() -> None:
    model = tiny("arcee")
    model.model.norm = tiny("gemma").model.norm
    with pytest.raises(ModelError, match=r"its norms get their gains from their weights in different ways"):
        candidates(model)


def test_heads_of_other_sizes_are_refused() -> None:
    model = tiny("arcee")
    model.model.layers[1].self_attn.q_proj = torch.nn.Linear(32, 16)
    with pytest.raises(ModelError, match=r"don't have the config's 4 heads of 8 with 2 for keys"):
        candidates(model)


@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_cannot_be_read_are_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        family_of(SimpleNamespace(model_type=kind))
    assert f"'{kind}' is not known" in str(caught.value)
    assert REFUSED[kind] in str(caught.value)


@pytest.mark.parametrize("family", ["mixtral", "stablelm", "glm4", "nemotron", "exaone4", "arcee"])
def test_an_adapter_is_merged_as_peft_does(family: str, tmp_path: Path) -> None:
    base = tiny(family, vocab_size=455)
    base.save_pretrained(tmp_path / "base")
    chatml().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, target_modules=["q_proj", "o_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(base, config).eval()
        wrapped.save_pretrained(str(tmp_path / "adapter"))
    tokens = random_tokens(2, 9)
    tuned = load(ModelSpec(path=tmp_path / "base", adapter=tmp_path / "adapter"), "tuned")
    with torch.no_grad():
        wanted = wrapped(tokens).logits
        assert (tuned.model(tokens).logits - wanted).norm() <= 1e-5 * wanted.norm()
        with wrapped.disable_adapter():
            assert (wrapped(tokens).logits - wanted).abs().max() > 0.01
    assert len(tuned.factors) == 2 * tuned.taps.n_layers


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "qwen4_exp_text": (
        {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 16, "moe_intermediate_size": 24},
        "recurrent",
    ),
    "falcon_h1": ({}, "beside the heads"),
    "gemma3n_text": ({"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2}, "AltUp"),
    "doge": ({"num_experts": 4}, "no sum"),
    "opt": ({"do_layer_norm_before": False, "word_embed_proj_dim": 32}, "no sum"),
    "gemma4_text": ({}, "heads of several widths"),
    "biogpt": ({}, "no final norm"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_says_what_cannot_be_read(kind: str, tmp_path: Path) -> None:
    own, says = KINDS[kind]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 455}
    AutoConfig.for_model(kind, **sizes, **own).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"'{kind}' is not known to Patchbay, and can't be read.*{says}"):
        planned(ModelSpec(path=tmp_path))


def test_the_plan_notes_that_a_family_is_unlisted(tmp_path: Path) -> None:
    tiny("seed_oss").save_pretrained(tmp_path)
    notes: list[str] = []
    assert planned(ModelSpec(path=tmp_path), notes).family.name == "seed_oss"
    assert any("'seed_oss' is not listed" in note for note in notes)
