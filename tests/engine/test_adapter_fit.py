"""Adapters as people have them: of older libraries, with new tokens, with leftovers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from tiny_study import save_model
from tiny_tokenizers import chatml
from transformers import AutoModelForCausalLM

from engine.errors import ModelError
from engine.models.loading import load
from engine.models.skeleton import planned
from engine.study.study import ModelSpec

FILE = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_adapter(folder: Path, tensors: Tensors, targets: list[str]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(folder)
    return folder


def expert_tensors() -> Tensors:
    """One low-rank change per expert, by the names that transformers 4 had for them."""
    shapes = {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}
    found = {}
    for layer in range(3):
        for expert in range(4):
            for number, (name, (out, width)) in enumerate(shapes.items()):
                place = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
                seed = 100 * layer + 10 * expert + number
                found[f"{place}.lora_A.weight"] = noise(4, width, seed=seed)
                found[f"{place}.lora_B.weight"] = noise(out, 4, seed=seed + 5000)
    return found


def test_an_adapter_with_a_change_for_each_expert_is_merged_as_by_hand(tmp_path: Path) -> None:
    save_model(tmp_path / "base", "qwen3_moe")
    given = expert_tensors()
    write_adapter(tmp_path / "adapter", given, ["gate_proj", "up_proj", "down_proj"])
    spec = ModelSpec(path=tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    merged = load(spec, "tuned").model

    by_hand = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for layer, block in enumerate(by_hand.model.layers):
        for expert in range(4):
            place = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}"
            change = {
                name: 2.0 * given[f"{place}.{name}.lora_B.weight"] @ given[f"{place}.{name}.lora_A.weight"]
                for name in ("gate_proj", "up_proj", "down_proj")
            }
            with torch.no_grad():
                block.mlp.experts.gate_up_proj[expert] += torch.cat([change["gate_proj"], change["up_proj"]])
                block.mlp.experts.down_proj[expert] += change["down_proj"]
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, by_hand(ids).logits, atol=2e-6, rtol=0)
    assert planned(spec).n_layers == 3


def attention_tensors(name: Callable[[int], str]) -> Tensors:
    found = {}
    for layer in range(3):
        found[f"{name(layer)}.lora_A.weight"] = noise(4, 32, seed=layer)
        found[f"{name(layer)}.lora_B.weight"] = noise(64, 4, seed=layer + 10)
    return found


def q_proj(layer: int) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.q_proj"


@pytest.mark.parametrize("where", [load, lambda spec, _name: planned(spec)], ids=["load", "plan"])
def test_what_is_left_over_of_an_adapter_is_named(tmp_path: Path, where: Callable[..., object]) -> None:
    save_model(tmp_path / "base")
    tensors = attention_tensors(q_proj)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = noise(4, 32)
    write_adapter(tmp_path / "adapter", tensors, ["q_proj"])
    spec = ModelSpec(path=tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    with pytest.raises(ModelError, match=r"doesn't fit.*without a counterpart.*layers\.7\.self_attn"):
        where(spec, "tuned")


def test_keys_with_the_adapters_name_in_them_are_read_like_those_without(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    plain = attention_tensors(q_proj)
    write_adapter(tmp_path / "plain", plain, ["q_proj"])
    named = {key.replace(".weight", ".default.weight"): value for key, value in plain.items()}
    write_adapter(tmp_path / "named", named, ["q_proj"])
    one, two = (
        load(ModelSpec(path=tmp_path / "base", adapter=tmp_path / name, device="cpu"), name)
        for name in ("plain", "named")
    )
    assert (
        one.factors.keys()
        == two.factors.keys()
        == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)}
    )
    for name, weight in one.model.named_parameters():
        assert torch.equal(weight, two.model.get_parameter(name))


def test_an_adapter_of_the_wrappers_old_names_is_read(tmp_path: Path) -> None:
    save_model(tmp_path / "base", "gemma3")
    new = attention_tensors(lambda i: f"base_model.model.model.language_model.layers.{i}.self_attn.q_proj")
    old = attention_tensors(lambda i: f"base_model.model.language_model.model.layers.{i}.self_attn.q_proj")
    write_adapter(tmp_path / "new", new, r".*language_model.*q_proj")  # type: ignore[arg-type]
    write_adapter(tmp_path / "old", old, r".*language_model.*q_proj")  # type: ignore[arg-type]
    one, two = (
        load(ModelSpec(path=tmp_path / "base", adapter=tmp_path / name, device="cpu"), name)
        for name in ("new", "old")
    )
    base = load(ModelSpec(path=tmp_path / "base", device="cpu"), "base").model
    changed = [
        name for name, w in one.model.named_parameters() if not torch.equal(w, base.get_parameter(name))
    ]
    assert len(changed) == 3
    for name, weight in one.model.named_parameters():
        assert torch.equal(weight, two.model.get_parameter(name))


def with_new_tokens(folder: Path, saved: list[str] | None, **model: object) -> ModelSpec:
    """A base, and an adapter trained after two tokens were added to its vocabulary."""
    save_model(folder / "base", "llama", **model)
    tokenizer = copy.deepcopy(chatml())
    tokenizer.add_tokens(["<|tool|>", "<|think|>"], special_tokens=True)
    base = tiny("llama", vocab_size=len(chatml()), **model)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"], modules_to_save=saved)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        wrapped = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "modules_to_save" in name:
                weight.add_(noise(*weight.shape, seed=len(name)))
    wrapped.save_pretrained(folder / "adapter", save_embedding_layers=saved is not None)
    tokenizer.save_pretrained(folder / "adapter")
    tensors = load_file(folder / "adapter" / FILE)
    assert any(".lora_A." in name for name in tensors)
    return ModelSpec(
        path=folder / "base", adapter=folder / "adapter", tokenizer=folder / "adapter", device="cpu"
    )


def test_an_adapter_that_brings_tokens_resizes_the_base(tmp_path: Path) -> None:
    spec = with_new_tokens(tmp_path, ["embed_tokens", "lm_head"])
    tuned, rows = load(spec, "tuned"), len(chatml()) + 2
    saved = load_file(tmp_path / "adapter" / FILE)
    assert tuned.taps.vocab == rows == planned(spec).vocab
    embedding = saved["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(tuned.model.get_input_embeddings().weight, embedding)
    assert f"the vocabulary has {rows} rows instead of the base's {rows - 2}" in tuned.info["notes"][0]


def test_an_adapter_for_tokens_that_it_does_not_bring_is_refused(tmp_path: Path) -> None:
    spec = with_new_tokens(tmp_path, None)
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        load(spec, "tuned")


def test_new_rows_at_one_end_alone_are_refused(tmp_path: Path) -> None:
    spec = with_new_tokens(tmp_path, ["embed_tokens"], tie_word_embeddings=False)
    place = tmp_path / "adapter" / FILE
    save_file({k: v for k, v in load_file(place).items() if "lm_head" not in k}, place)
    with pytest.raises(ModelError, match=r"rows of only one end .*unembedding: none.*merge it"):
        planned(spec)


def test_an_adapters_own_tokenizer_that_is_not_used_is_told(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    write_adapter(tmp_path / "adapter", attention_tensors(q_proj), ["q_proj"])
    spec = ModelSpec(path=tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    assert load(spec, "tuned").info["notes"] == []
    tokenizer = copy.deepcopy(chatml())
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert load(spec, "tuned").info["notes"] == []
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant: ")
    tokenizer.save_pretrained(tmp_path / "adapter")
    (note,) = load(spec, "tuned").info["notes"]
    assert "adapter has another chat template, which is not used" in note
    named = spec.model_copy(update={"tokenizer": tmp_path / "adapter"})
    assert load(named, "tuned").info["notes"] == []


def test_an_adapter_that_unties_the_embedding_is_merged_as_trained_and_told(tmp_path: Path) -> None:
    """Of a tied base peft trains a copy of the embedding; the unembedding stays the base's."""
    save_model(tmp_path / "base")
    config = LoraConfig(
        r=2, init_lora_weights=False, target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
        for name, weight in wrapped.named_parameters():
            if "modules_to_save" in name:
                weight.data += 0.1
        wrapped.save_pretrained(str(tmp_path / "adapter"))
    lm = load(ModelSpec(path=tmp_path / "base", adapter=tmp_path / "adapter", device="cpu"), "m")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, wrapped(ids).logits, atol=1e-5, rtol=1e-5)
    assert any("untied from the unembedding" in note for note in lm.info["notes"])
