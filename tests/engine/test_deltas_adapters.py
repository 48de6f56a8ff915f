"""Adapters of many kinds as weight differences: against PEFT's own forward pass, and refused where wrong."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_kinds import KINDS, LORA, OTHER_MODULES, ROWS, adapter
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from tiny_models import random_tokens, tiny
from tiny_tokenizers import chatml

from engine.errors import ModelError
from engine.models.loading import from_parts, load
from engine.study.study import ModelSpec
from engine.weights.deltas import weight_deltas
from engine.weights.steer import WeightShift


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 folder with its tokenizer."""
    folder = tmp_path_factory.mktemp("adapters") / "base"
    tiny("qwen3", vocab_size=ROWS).save_pretrained(folder)
    chatml().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_steering_by_an_adapters_difference_is_pefts_own_forward_pass(
    base: Path, tmp_path: Path, kind: str
) -> None:
    place = adapter(tmp_path / kind, KINDS[kind])
    plain, tuned = (load(spec, "m") for spec in (ModelSpec(path=base), ModelSpec(path=base, adapter=place)))
    deltas = list(weight_deltas(plain.model, tuned.model))
    if kind not in OTHER_MODULES:
        assert {delta.name.split(".")[-2] for delta in deltas} <= {"o_proj", "down_proj"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(tiny("qwen3", vocab_size=ROWS), str(place)).eval()
    ids = random_tokens(2, 9)
    with torch.no_grad(), WeightShift(plain, deltas).at(1.0):
        found = plain.model(ids).logits
    with torch.no_grad():
        expected, without = wrapped(input_ids=ids).logits, plain.model(ids).logits
    assert (expected - without).abs().max() > 0.05, "the adapter does something"
    # Merged and unmerged sums differ by rounding, 1e-6 of logits of size 10, through 3 blocks.
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "rank", "scale"), [("lora", 2, 3.0), ("rslora", 2, 6 / 2**0.5)])
def test_a_lora_difference_is_its_scale_times_b_a_factored(
    base: Path, tmp_path: Path, kind: str, rank: int, scale: float
) -> None:
    place = adapter(tmp_path / kind, KINDS[kind])
    models = [load(ModelSpec(path=base, adapter=a), "m").model for a in (None, place)]
    factors = load_file(place / "adapter_model.safetensors")
    deltas = list(weight_deltas(*models))
    assert [delta.rank for delta in deltas] == [rank] * 6
    for delta in deltas:
        key = f"base_model.model.{delta.name.removesuffix('.weight')}"
        wanted = scale * factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
        # Merging rounds W + ΔW in float32, 6e-8 of entries of size 1; factoring adds as much of ΔW's norm.
        np.testing.assert_allclose(delta.matrix(), wanted.numpy(), atol=5e-6)
        assert delta.error < 1e-5


def break_weights(place: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = place / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def spoil(weights: dict[str, torch.Tensor]) -> None:
    next(iter(weights.values()))[0, 0] = float("nan")


def lose(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(next(iter(weights)))


def widen(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = torch.zeros(2, 7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil, r"doesn't fit the base model.*NaN"),
        (lose, r"doesn't fit.*the file lacks.*lora_"),
        (widen, r"doesn't fit.*size mismatch"),
    ],
)
def test_a_damaged_adapter_is_refused(base: Path, tmp_path: Path, change: Any, says: str) -> None:
    place = adapter(tmp_path / "lora", KINDS["lora"])
    break_weights(place, change)
    with pytest.raises(ModelError, match=says):
        load(ModelSpec(path=base, adapter=place), "tuned")


def test_an_adapter_for_modules_that_are_not_there_is_refused(base: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", KINDS["lora"])
    path = place / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["c_fc"]}))
    with pytest.raises(ModelError, match=r"doesn't fit the base model.*c_fc.*not found"):
        load(ModelSpec(path=base, adapter=place), "tuned")


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_an_adapter_that_is_no_change_of_weights_is_refused(base: Path, tmp_path: Path, config: Any) -> None:
    place = adapter(tmp_path / "prompt", config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"(PROMPT|PREFIX)_TUNING.*cannot be merged"):
        load(ModelSpec(path=base, adapter=place), "tuned")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_end_of_a_tied_embedding_is_refused(
    base: Path, tmp_path: Path, module: str
) -> None:
    """Merged it would be on both ends, which is not what the adapter does."""
    place = adapter(tmp_path / module, LoraConfig(**LORA | {"target_modules": [module]}))
    with pytest.raises(ModelError, match=r"doesn't fit.*the embedding or the unembedding alone.*ties"):
        load(ModelSpec(path=base, adapter=place), "tuned")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("how", ["target_modules", "modules_to_save"])
def test_an_adapter_on_an_untied_embedding_is_right(tmp_path: Path, module: str, how: str) -> None:
    own = {"tie_word_embeddings": False}
    tiny("qwen3", vocab_size=ROWS, **own).save_pretrained(tmp_path / "base")
    chatml().save_pretrained(tmp_path / "base")
    place = adapter(tmp_path / "a", LoraConfig(**LORA | {how: [module]}), **own)
    plain, tuned = (load(ModelSpec(path=tmp_path / "base", adapter=given), "m") for given in (None, place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(tiny("qwen3", vocab_size=ROWS, **own), str(place)).eval()
    ids = random_tokens(2, 9)
    deltas = list(weight_deltas(plain.model, tuned.model))
    assert f"{module}.weight" in {delta.name.removeprefix("model.") for delta in deltas}
    with torch.no_grad(), WeightShift(plain, deltas).at(1.0):
        found = plain.model(ids).logits
    with torch.no_grad():
        assert (found - wrapped(input_ids=ids).logits).abs().max() < 1e-4  # as above
        assert (found - plain.model(ids).logits).abs().max() > 0.05


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"hidden_size": 24}, r"doesn't fit.*size mismatch"),
        ({"num_hidden_layers": 4}, r"doesn't fit.*without a counterpart.*layers\.3"),
        ({"num_hidden_layers": 2}, r"doesn't fit.*that the file lacks.*layers\.2"),
    ],
    ids=str,
)
def test_an_adapter_for_another_base_is_refused(
    base: Path, tmp_path: Path, overrides: dict[str, Any], says: str
) -> None:
    place = adapter(tmp_path / "lora", KINDS["lora"], **overrides)
    with pytest.raises(ModelError, match=says):
        load(ModelSpec(path=base, adapter=place), "tuned")


def test_an_unknown_kind_of_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", KINDS["lora"])
    path = place / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "TELEPATHY"}))
    with pytest.raises(ModelError, match=r"doesn't fit.*TELEPATHY"):
        load(ModelSpec(path=base, adapter=place), "tuned")


def test_an_adapter_that_names_another_base_is_said(base: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", KINDS["lora"])
    path = place / "adapter_config.json"
    said = json.loads(path.read_text()) | {"base_model_name_or_path": "somebody/another-model"}
    path.write_text(json.dumps(said))
    tuned = load(ModelSpec(path=base, adapter=place), "tuned")
    assert any("somebody/another-model" in note for note in tuned.info["notes"])
    renamed = Path(shutil.copytree(base, tmp_path / "another-model"))
    tuned = load(ModelSpec(path=renamed, adapter=place), "tuned")
    assert not any("somebody" in note for note in tuned.info["notes"])


def test_a_difference_made_on_another_base_is_refused_by_name(base: Path) -> None:
    lm = load(ModelSpec(path=base), "base")
    for family, overrides, says in (
        ("gpt2", {}, r"names 'transformer\.wte\.weight', which the model doesn't have"),
        ("qwen3", {"hidden_size": 24}, r"embed_tokens\.weight has the wrong shape.*\(455, 32\).*\(455, 24\)"),
    ):
        two = [tiny(family, seed=seed, vocab_size=ROWS, **overrides) for seed in (0, 1)]
        with pytest.raises(ModelError, match=says):
            WeightShift(lm, weight_deltas(*two))
    assert from_parts(lm.model, None, "x").taps.n_layers == 3
