"""Odd checkpoints: each is loaded and passes its identities, or is refused by the plan in words.

A case is a change of a sound model's folder, or of a sound adapter's. Nothing of a refused one is ever run.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_kinds import LORA
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from tiny_study import save_model, write_study
from tiny_tokenizers import chatml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from app.build.prepare import Prepared
from engine.errors import PatchbayError
from engine.models.loading import load
from engine.study.study import Study

WEIGHTS = "model.safetensors"
Change = Callable[[Path], object]
LOADS = ""
"""What is expected of a case that is no refusal."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a Llama called odd, and one of another Llama with an adapter."""
    folder = tmp_path_factory.mktemp("odd")
    for seed, name in enumerate(("base", "odd")):
        save_model(folder / name, "llama", seed)
    lora(folder / "adapter")
    write_study(folder, pairs=2, positions=["decision"])
    text = (folder / "study.toml").read_text(encoding="utf-8")
    both = '[models.base]\npath = "base"\n[models.tuned]\npath = "tuned"'
    assert both in text
    for study, odd in (("study", 'path = "odd"'), ("adapter", 'path = "base"\nadapter = "adapter"')):
        alone = text.replace(both, f"[models.odd]\n{odd}")
        (folder / f"{study}.toml").write_text(alone, encoding="utf-8")
    return folder


def lora(folder: Path, base: Any = None, **more: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = base or tiny("llama", vocab_size=len(chatml()))
        get_peft_model(model, LoraConfig(**LORA | more)).save_pretrained(str(folder))


def config(**more: Any) -> Change:
    def change(folder: Path) -> None:
        place = folder / "config.json"
        found = json.loads(place.read_text(encoding="utf-8")) | more
        place.write_text(json.dumps({k: v for k, v in found.items() if v != "(gone)"}), encoding="utf-8")

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS) -> Change:
    def changed(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(
            {name: value.contiguous() for name, value in found.items()}, folder / file, {"format": "pt"}
        )

    return changed


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def gone(*files: str) -> Change:
    return lambda folder: [path.unlink() for file in files for path in folder.glob(file)]


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def kind(name: str, **more: Any) -> Change:
    """The config of another kind of model, as its class writes it."""
    return lambda folder: AutoConfig.for_model(name, **more).save_pretrained(folder)


def family(name: str, **more: Any) -> Change:
    """Another family's model, with the same tokenizer."""

    def change(folder: Path) -> None:
        gone("*.safetensors", "config.json")(folder)
        tiny(name, vocab_size=len(chatml()), **more).save_pretrained(folder)

    return change


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(found: dict[str, torch.Tensor]) -> None:
        for name in list(found):
            found[name.replace(old, new)] = found.pop(name)

    return change


def resized(rows: int, extra: int) -> Change:
    """An embedding of so many rows more, and a tokenizer with so many tokens more."""

    def change(folder: Path) -> None:
        model, tokenizer = (k.from_pretrained(folder) for k in (AutoModelForCausalLM, AutoTokenizer))
        tokenizer.add_tokens([f"<|{i}|>" for i in range(extra)], special_tokens=True)
        model.resize_token_embeddings(len(chatml()) + rows, mean_resizing=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return change


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def absent_shard(folder: Path) -> None:
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(folder / WEIGHTS), "model-00001-of-00002.safetensors"),
    }
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / WEIGHTS).unlink()


def short_index(folder: Path) -> None:
    """A shard holds a tensor less than the index says."""
    found = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    file = "model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(found, file)}
    found.pop("model.norm.weight")
    save_file(found, folder / file, {"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")


def of(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda found: found.pop(name)


ROPE = {"rope_theta": 1e4}
MORE = torch.ones(2)
FULL = "is a quantised checkpoint"
OTHER = r"could not be loaded|lacks \d+ of the"
"""A known family's config before another one's weights."""
FAMILY = r"The model family '.*' is not known"
UNREAD = "could not be loaded"
BUILT = "No causal language model can be built"
CONFIG = "can't be a model's"

MODELS: dict[str, tuple[Change, str]] = {
    "untouched": (lambda folder: None, LOADS),
    # weights
    "a key less": (tensors(of("model.layers.1.mlp.up_proj.weight")), "lacks 1 of the model's tensors"),
    "no unembedding": (tensors(of("lm_head.weight")), "lacks 1 .*lm_head"),
    "no norms": (tensors(lambda t: [t.pop(n) for n in list(t) if "norm" in n]), "lacks 7 of"),
    "a key more, elsewhere": (tensors(lambda t: t.update({"score.weight": MORE})), LOADS),
    "a key more, inside": (
        tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.weight_scale": MORE})),
        "wouldn't use.*unquantised",
    ),
    "a block more": (
        tensors(lambda t: t.update({"model.layers.3.self_attn.q_proj.weight": torch.ones(32, 32)})),
        LOADS,
    ),
    "keys of a wrapper": (tensors(renamed("model.", "base_model.model.model.")), "lacks"),
    "keys of a compiled model": (tensors(renamed("model.", "_orig_mod.model.")), "lacks"),
    "no keys": (tensors(lambda t: t.clear()), "lacks"),
    "a wider norm": (tensors(lambda t: t.update({"model.norm.weight": torch.ones(33)})), UNREAD),
    "a transposed projection": (
        tensors(lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48)})),
        UNREAD,
    ),
    "a scalar for a matrix": (
        tensors(lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(())})),
        UNREAD,
    ),
    "whole numbers": (
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        "weights in whole numbers.*norm.weight in I8",
    ),
    "half precision": (tensors(lambda t: t.update({n: v.half() for n, v in t.items()})), LOADS),
    "double precision": (tensors(lambda t: t.update({n: v.double() for n, v in t.items()})), LOADS),
    "an empty file": (bytes_of(WEIGHTS, lambda b: b""), UNREAD),
    "a truncated file": (bytes_of(WEIGHTS, lambda b: b[:-100]), UNREAD),
    "half a header": (bytes_of(WEIGHTS, lambda b: b[:200]), UNREAD),
    "a header of lists": (bytes_of(WEIGHTS, lambda b: struct.pack("<Q", 2) + b"[]"), UNREAD),
    "text for weights": (bytes_of(WEIGHTS, lambda b: b"version https://git-lfs.github.com/spec/v1"), UNREAD),
    "no weights": (gone(WEIGHTS), UNREAD),
    "weights as .bin": (as_bin, LOADS),
    "a .bin that is none": (
        both(as_bin, bytes_of("pytorch_model.bin", lambda b: b"PK\3\4" + b[:50])),
        UNREAD,
    ),
    "an absent shard": (absent_shard, "names files that aren't there"),
    "a shard with less than its index": (short_index, "lacks 1|could not be loaded"),
    "an index of nothing": (
        lambda folder: (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {}}'),
        CONFIG,
    ),
    # config
    "no config": (gone("config.json"), "is not a model folder"),
    "an empty config": (bytes_of("config.json", lambda b: b"{}"), CONFIG),
    "a cut config": (bytes_of("config.json", lambda b: b[:100]), "can't be read"),
    "no model_type": (config(model_type="(gone)"), CONFIG),
    "an unknown model_type": (config(model_type="llamba"), UNREAD),
    "another family's model_type": (config(model_type="gpt_neox"), "lacks|can be built"),
    "no architectures": (config(architectures=None), LOADS),
    "a classifier's architectures": (config(architectures=["LlamaForSequenceClassification"]), LOADS),
    "a dtype in words": (config(dtype="float31"), UNREAD),
    "an old dtype key": (config(dtype="(gone)", torch_dtype="float16"), LOADS),
    "zero layers": (config(num_hidden_layers=0), CONFIG),
    "fewer layers": (config(num_hidden_layers=2), LOADS),
    "more layers": (config(num_hidden_layers=4), "lacks"),
    "a billion layers": (config(num_hidden_layers=10**9), CONFIG),
    "a width of 10^30": (config(hidden_size=10**30), CONFIG),
    "a width as text": (config(hidden_size="32"), CONFIG),
    "another width": (config(hidden_size=64), UNREAD),
    "heads that don't divide": (config(num_attention_heads=5), "built|loaded|odd"),
    "zero heads": (config(num_attention_heads=0), "built|loaded|odd"),
    "more key heads than heads": (config(num_key_value_heads=8), "loaded|built|odd"),
    "key heads that don't divide": (config(num_key_value_heads=3), "loaded|built|odd"),
    "no vocabulary": (config(vocab_size=0), "built|loaded|odd"),
    "a negative vocabulary": (config(vocab_size=-5), CONFIG),
    "an unknown activation": (config(hidden_act="gelulu"), BUILT),
    "a negative epsilon": (config(rms_norm_eps=float("nan")), "no number of JSON"),
    "no positions": (config(max_position_embeddings=0), CONFIG),
    "few positions": (config(max_position_embeddings=4), "longer|at most 4 tokens"),
    "code of its own": (
        config(auto_map={"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}, model_type="own"),
        UNREAD,
    ),
    # ties
    "tied, with two matrices": (config(tie_word_embeddings=True), LOADS),
    "tied, with one": (both(config(tie_word_embeddings=True), tensors(of("lm_head.weight"))), LOADS),
    "untied, from a tied one": (
        both(family("qwen3"), config(tie_word_embeddings=False)),
        "lacks 1 .*lm_head",
    ),
    # rotary positions
    "an unknown rope": (config(rope_parameters=ROPE | {"rope_type": "sideways"}), "built|loaded"),
    "yarn without a factor": (config(rope_parameters=ROPE | {"rope_type": "yarn"}), "built|loaded"),
    "linear of zero": (
        config(rope_parameters=ROPE | {"rope_type": "linear", "factor": 0.0}),
        "Rotary positions",
    ),
    "longrope of too few factors": (
        config(
            rope_parameters=ROPE
            | {
                "rope_type": "longrope",
                "short_factor": [1.0] * 3,
                "long_factor": [1.0] * 3,
                "original_max_position_embeddings": 8,
            }
        ),
        "Rotary positions|built",
    ),
    "an old dynamic rope": (config(rope_scaling={"type": "dynamic", "factor": 2.0}, rope_theta=1e4), LOADS),
    "a rope as text": (config(rope_parameters="yarn"), "built|loaded"),
    # tokenizers
    "no tokenizer": (gone("tokenizer*"), "no tokenizer files"),
    "a cut tokenizer": (bytes_of("tokenizer.json", lambda b: b[:500]), UNREAD),
    "an empty tokenizer": (bytes_of("tokenizer.json", lambda b: b"{}"), UNREAD),
    "more tokens than rows": (resized(0, 5), "more tokens than the model has embeddings"),
    "more rows than tokens": (resized(64, 0), LOADS),
    "new tokens with rows": (resized(64, 3), LOADS),
    "far more rows than tokens": (resized(5000, 0), "far fewer tokens"),
    "no chat template": (gone("*.jinja"), "template"),
    # what isn't a causal language model of text
    "encoder": (kind("bert"), FAMILY),
    "encoder of late": (kind("modernbert"), FAMILY),
    "encoder and decoder": (kind("t5"), FAMILY),
    "encoder and decoder, BART": (kind("bart"), "BART|Bart|bart|family|built|lacks"),
    "audio": (kind("whisper"), FAMILY),
    "speech": (kind("wav2vec2"), FAMILY),
    "vision": (kind("vit"), FAMILY),
    "vision and language": (kind("qwen2_vl"), OTHER),
    "vision and language, LLaVA": (kind("llava"), OTHER),
    "contrastive": (kind("clip"), FAMILY),
    "state space": (kind("mamba"), FAMILY),
    "state space 2": (kind("mamba2"), FAMILY),
    "recurrent": (kind("rwkv"), FAMILY),
    "hybrid": (kind("jamba"), OTHER),
    "sinks": (kind("gpt_oss"), OTHER),
    "compressed keys": (kind("deepseek_v3"), OTHER),
    "diffusion": (
        bytes_of("config.json", lambda b: b'{"_class_name": "UNet2DConditionModel", "in_channels": 4}'),
        CONFIG,
    ),
    "a pipeline of diffusion": (
        both(gone("config.json"), lambda folder: (folder / "model_index.json").write_text("{}")),
        "is not a model folder",
    ),
    # quantised by every name
    **{
        f"quantised by {method}": (config(quantization_config={"quant_method": method, "bits": 4}), FULL)
        for method in (
            "gptq",
            "awq",
            "hqq",
            "quanto",
            "torchao",
            "aqlm",
            "mxfp4",
            "quark",
            "bitnet",
            "nameless",
        )
    },
    "quantised, no method": (config(quantization_config={"bits": 4}), FULL),
    "FP8 by config alone": (
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]}),
        LOADS,
    ),
    "FP8 with blocks of nothing": (
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [0, 0]}),
        "built|loaded",
    ),
    "other families": (family("gpt2"), LOADS),
    "an adapter beside it": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "holds a model and an adapter",
    ),
}


def saved(**more: Any) -> Change:
    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        lora(folder, **more)

    return change


def other_kind(made: Any) -> Change:
    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(tiny("llama", vocab_size=len(chatml())), made).save_pretrained(str(folder))

    return change


def settings(**more: Any) -> Change:
    def change(folder: Path) -> None:
        place = folder / "adapter_config.json"
        found = json.loads(place.read_text(encoding="utf-8")) | more
        place.write_text(json.dumps(found), encoding="utf-8")

    return change


ADAPTER = "adapter_model.safetensors"
UNFIT = "doesn't fit the base model"
CAUSAL: Any = {"task_type": "CAUSAL_LM"}


def nan(found: dict[str, torch.Tensor]) -> None:
    next(iter(found.values())).view(-1)[0] = float("nan")


ADAPTERS: dict[str, tuple[Change, str]] = {
    "untouched": (lambda folder: None, LOADS),
    "another base's width": (saved(base=tiny("llama", vocab_size=449, hidden_size=64)), UNFIT),
    "another base's names": (saved(base=tiny("gpt2"), target_modules=["c_attn"], fan_in_fan_out=True), UNFIT),
    "of more blocks": (saved(base=tiny("llama", vocab_size=449, num_hidden_layers=4)), UNFIT),
    "of fewer blocks": (saved(base=tiny("llama", vocab_size=449, num_hidden_layers=2)), UNFIT),
    "another rank in its config": (settings(r=5), UNFIT),
    "a rank of zero": (settings(r=0), UNFIT),
    "other modules in its config": (settings(target_modules=["q_proj"]), UNFIT),
    "modules that aren't there": (settings(target_modules=["nothing"]), UNFIT),
    "DoRA": (saved(use_dora=True), LOADS),
    "DoRA, not said so": (both(saved(use_dora=True), settings(use_dora=False)), UNFIT),
    "rsLoRA": (saved(use_rslora=True), LOADS),
    "ranks of a pattern": (saved(rank_pattern={"o_proj": 4}), LOADS),
    "saved modules": (saved(modules_to_save=["norm"]), LOADS),
    "a saved unembedding": (saved(modules_to_save=["lm_head"]), LOADS),
    "IA3": (
        other_kind(
            peft.IA3Config(
                target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
            )
        ),
        LOADS,
    ),
    "prompt tuning": (other_kind(peft.PromptTuningConfig(num_virtual_tokens=4, **CAUSAL)), UNFIT),
    "prefix tuning": (other_kind(peft.PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL)), UNFIT),
    "p-tuning": (other_kind(peft.PromptEncoderConfig(num_virtual_tokens=4, **CAUSAL)), UNFIT),
    "added tokens at one end": (
        saved(base=tiny("llama", vocab_size=460), modules_to_save=["embed_tokens"]),
        "saved rows of only one end",
    ),
    "added tokens at both": (
        saved(base=tiny("llama", vocab_size=460), modules_to_save=["embed_tokens", "lm_head"]),
        LOADS,
    ),
    "a tensor less": (tensors(lambda t: t.pop(min(t)), ADAPTER), UNFIT),
    "a tensor more": (
        tensors(lambda t: t.update({"base_model.model.x.lora_A.weight": MORE}), ADAPTER),
        UNFIT,
    ),
    "no tensors": (tensors(lambda t: t.clear(), ADAPTER), UNFIT),
    "NaN": (tensors(nan, ADAPTER), "finite|NaN"),
    "a truncated file": (bytes_of(ADAPTER, lambda b: b[:-60]), UNFIT),
    "text for weights": (bytes_of(ADAPTER, lambda b: b"version https://git-lfs.github.com/spec/v1"), UNREAD),
    "no weights": (gone(ADAPTER), UNFIT),
    "no config": (gone("adapter_config.json"), "is not an adapter folder"),
    "a config of another program": (
        lambda folder: (folder / "adapter_config.json").write_text('{"config": {"architecture": "seq_bn"}}'),
        UNFIT,
    ),
    "an unknown kind": (settings(peft_type="TOMORROW"), UNFIT),
    "settings of a later version": (settings(a_setting_of_tomorrow=True), LOADS),
    "a bias trained with it": (saved(bias="all"), LOADS),
}


def prepared(folder: Path, study: str) -> Study:
    found = Study.load(folder / study)
    Prepared.of(found)
    return found


def judged(folder: Path, study: str, says: str) -> None:
    if says:
        with pytest.raises(PatchbayError, match=r"Expected:.*Given:.*") as refused:
            prepared(folder, study)
        assert re.search(says, str(refused.value)), refused.value
        return
    spec = prepared(folder, study).models["odd"]
    lm = load(spec.model_copy(update={"device": "cpu"}), "odd")
    assert all(check.passed for check in lm.checks)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_loaded_or_refused_by_the_plan(sound: Path, tmp_path: Path, name: str) -> None:
    change, says = MODELS[name]
    folder = Path(shutil.copytree(sound, tmp_path / "study"))
    change(folder / "odd")
    judged(folder, "study.toml", says)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_loaded_or_refused_by_the_plan(sound: Path, tmp_path: Path, name: str) -> None:
    change, says = ADAPTERS[name]
    folder = Path(shutil.copytree(sound, tmp_path / "study"))
    change(folder / "adapter")
    judged(folder, "adapter.toml", says)
