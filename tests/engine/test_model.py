from __future__ import annotations

import json
import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import LAYERS, tiny
from tiny_tokenizers import chatml, gemma, llama3

from engine.errors import ModelError
from engine.models.families import FAMILIES
from engine.models.loading import from_parts, load, resolve_device
from engine.models.trust import allow_code, code_hash
from engine.study.file_hashes import file_hash
from engine.study.study import ModelSpec

ROWS = 455


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 folder with tokenizer, and two adapters for it; never written to by a test."""
    root = tmp_path_factory.mktemp("models")
    model = tiny("qwen3", vocab_size=ROWS)
    model.save_pretrained(root / "base")
    chatml().save_pretrained(root / "base")
    torch.manual_seed(5)
    config = LoraConfig(
        r=2, target_modules=["o_proj", "down_proj"], layers_to_transform=[1], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        get_peft_model(model, config).save_pretrained(str(root / "adapter"))
    return root


def copy(saved: Path, tmp_path: Path, name: str = "base") -> Path:
    return Path(shutil.copytree(saved / name, tmp_path / name))


def edit_weights(folder: Path, **changes: Any) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            weights.pop(key)
        else:
            weights[key] = change(weights[key])
    save_file(weights, path, metadata={"format": "pt"})


def test_a_folder_is_loaded_checked_and_described(saved: Path) -> None:
    lm = load(ModelSpec(path=saved / "base", device="cpu"), "base")
    assert lm.taps.n_layers == LAYERS
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert [check.name for check in lm.checks] == [
        "residual identity",
        "stream identity",
        "heads identity",
        "values identity",
        "inputs identity",
        "logits identity",
    ]
    assert all(check.passed for check in lm.checks)
    weights = saved / "base" / "model.safetensors"
    assert lm.info["files"]["model.safetensors"] == file_hash(weights)
    assert lm.info["class"] == "Qwen3ForCausalLM"
    assert lm.info["attention"] == "sdpa"
    assert lm.info["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    assert lm.info["trust_remote_code"] is False
    assert lm.max_length == 128
    json.dumps(lm.info)


def test_a_merged_adapter_is_the_base_plus_b_times_a_and_leaves_the_files(saved: Path) -> None:
    before = {path.name: file_hash(path) for path in sorted((saved / "base").iterdir())}
    base = load(ModelSpec(path=saved / "base"), "base")
    tuned = load(ModelSpec(path=saved / "base", adapter=saved / "adapter"), "tuned")
    config = json.loads((saved / "adapter" / "adapter_config.json").read_text())
    factors = load_file(saved / "adapter" / "adapter_model.safetensors")
    for name, weight in base.model.state_dict().items():
        key = "base_model.model." + name.removesuffix(".weight")
        delta = torch.zeros_like(weight)
        if key + ".lora_A.weight" in factors:
            product = factors[key + ".lora_B.weight"] @ factors[key + ".lora_A.weight"]
            delta = product * (config["lora_alpha"] / config["r"])
            assert delta.norm() > 0.01
        # merge and product are the same sums in another order: a few float32 roundings
        torch.testing.assert_close(tuned.model.state_dict()[name], weight + delta, rtol=0, atol=1e-6)
    assert {path.name: file_hash(path) for path in sorted((saved / "base").iterdir())} == before
    assert set(tuned.info["adapter_files"]) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_weight_diff_is_added_in_float32(saved: Path, tmp_path: Path, suffix: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    delta = torch.full((48, 32), 1e-3)
    path = tmp_path / f"diff{suffix}"
    if suffix == ".pt":
        torch.save({name: delta}, path)
    else:
        save_file({name: delta}, path)
    for dtype in ("float32", "bfloat16"):
        base = load(ModelSpec(path=saved / "base", dtype=dtype), "base").model.state_dict()
        tuned = load(ModelSpec(path=saved / "base", weight_diff=path, dtype=dtype), "tuned")
        for key, weight in tuned.model.state_dict().items():
            added = (base[key].float() + (delta if key == name else 0.0)).to(weight.dtype)
            assert torch.equal(weight, added)
        assert tuned.info["weight_diff"] == {path.name: file_hash(path)}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model.layers.9.mlp.up_proj.weight": torch.zeros(2)}, ["model.layers.9.mlp.up_proj.weight"]),
        ({"model.norm.weight": torch.zeros(2)}, ["model.norm.weight", "(32,)", "(2,)"]),
        ({"model.norm.weight": torch.full((32,), torch.nan)}, ["model.norm.weight", "not finite"]),
        (
            {"lm_head.weight": torch.zeros(ROWS, 32), "model.embed_tokens.weight": torch.ones(ROWS, 32)},
            ["shared parameter in two ways"],
        ),
    ],
)
def test_a_weight_diff_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, content: dict[str, torch.Tensor], parts: list[str]
) -> None:
    save_file(content, tmp_path / "diff.safetensors")
    with pytest.raises(ModelError) as caught:
        load(ModelSpec(path=saved / "base", weight_diff=tmp_path / "diff.safetensors"), "tuned")
    assert all(part in str(caught.value) for part in parts)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_a_pt_file_never_runs_code(saved: Path, tmp_path: Path) -> None:
    torch.save({"model.norm.weight": Payload(str(tmp_path / "owned"))}, tmp_path / "diff.pt")
    with pytest.raises(ModelError, match=r"diff\.pt cannot be read.*plain dict of tensors"):
        load(ModelSpec(path=saved / "base", weight_diff=tmp_path / "diff.pt"), "tuned")
    assert not (tmp_path / "owned").exists()


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"not a model folder.*config\.json.*Given: notes\.txt"):
        load(ModelSpec(path=tmp_path), "base")


def test_an_adapter_of_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    tiny("qwen3", vocab_size=ROWS, hidden_size=24).save_pretrained(narrow)
    chatml().save_pretrained(narrow)
    with pytest.raises(ModelError, match=r"doesn't fit the base model.*size mismatch"):
        load(ModelSpec(path=narrow, adapter=saved / "adapter"), "tuned")


def test_an_adapter_whose_tensors_have_no_place_is_refused(saved: Path, tmp_path: Path) -> None:
    adapter = copy(saved, tmp_path, "adapter")
    path = adapter / "adapter_model.safetensors"
    factors = load_file(path)
    moved = {
        key.replace("layers.1.", "layers.2."): value.clone()
        for key, value in factors.items()
        if "o_proj" in key
    }
    save_file(factors | moved, path)
    with pytest.raises(ModelError, match=r"doesn't fit.*without a counterpart.*layers\.2"):
        load(ModelSpec(path=saved / "base", adapter=adapter), "tuned")


def test_a_folder_that_is_no_adapter_is_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"not an adapter folder.*adapter_config\.json"):
        load(ModelSpec(path=saved / "base", adapter=saved / "base"), "tuned")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"model__layers__1__mlp__up_proj__weight": None}, r"lacks 1 of.*layers\.1\.mlp\.up_proj\.weight"),
        ({"model__norm__weight": lambda w: w * torch.nan}, r"model\.norm\.weight holds numbers.*not finite"),
        ({"model__norm__weight": lambda w: w[:3].clone()}, r"could not be loaded"),
    ],
)
def test_damaged_weights_are_refused(
    saved: Path, tmp_path: Path, changes: dict[str, Any], pattern: str
) -> None:
    folder = copy(saved, tmp_path)
    edit_weights(folder, **changes)
    with pytest.raises(ModelError, match=pattern):
        load(ModelSpec(path=folder), "base")


def test_a_truncated_weight_file_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"could not be loaded.*complete and undamaged"):
        load(ModelSpec(path=folder), "base")


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 8}')
    with pytest.raises(ModelError, match=r"'mamba' is not known.*gemma2.*gpt2.*qwen3"):
        load(ModelSpec(path=tmp_path), "base")


def test_a_hub_model_without_network_is_refused_with_advice() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing could not be loaded.*connect to the network"):
        load(ModelSpec(hub="nobody/nothing"), "base")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(saved: Path, tmp_path: Path) -> None:
    big = gemma()
    assert len(big) > ROWS
    big.save_pretrained(tmp_path / "tok")
    with pytest.raises(ModelError, match=r"more tokens than the model has embeddings.*at most 455"):
        load(ModelSpec(path=saved / "base", tokenizer=tmp_path / "tok"), "base")


def test_a_tokenizer_override_is_used(saved: Path, tmp_path: Path) -> None:
    llama3().save_pretrained(tmp_path / "tok")
    lm = load(ModelSpec(path=saved / "base", tokenizer=tmp_path / "tok"), "base")
    assert lm.tokenizer.bos_token == "<|begin_of_text|>"


def test_remote_code_is_off_unless_asked_for_and_then_said(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(saved, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_kind", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="trust_remote_code = true"):
        load(ModelSpec(path=folder), "base")
    assert not (tmp_path / "ran").exists()
    spec = ModelSpec(path=saved / "base", trust_remote_code=True, code_sha256=code_hash(saved / "base"))
    allow_code(True)
    try:
        with caplog.at_level(logging.WARNING, "engine.models.loading"):
            trusted = load(spec, "base")
    finally:
        allow_code(False)
    assert trusted.info["trust_remote_code"] is True
    assert "trust_remote_code is on" in caplog.text


def test_gemma2_gets_the_attention_that_is_exact_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny("gemma2", vocab_size=ROWS).save_pretrained(tmp_path)
    chatml().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "engine.models.loading"):
        lm = load(ModelSpec(path=tmp_path, attention="sdpa"), "base")
    assert lm.info["attention"] == "eager"
    assert "'sdpa' is not exact for gemma2" in caplog.text


def test_an_absent_device_is_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ModelError, match=r"cuda:99.*isn't there"):
        resolve_device("cuda:99")


def test_a_model_with_offloaded_weights_is_refused() -> None:
    model = tiny("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.to("meta"), requires_grad=False)
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.up_proj\.weight was left.*doesn't fit the devices"
    ):
        from_parts(model)


def test_the_tokenizers_definition_is_hashed() -> None:
    first = from_parts(tiny("llama"), chatml()).info["tokenizer_hash"]
    assert first == from_parts(tiny("llama"), chatml.__wrapped__()).info["tokenizer_hash"]
    other = chatml.__wrapped__()
    other.chat_template += " "
    assert from_parts(tiny("llama"), other).info["tokenizer_hash"] != first
    assert from_parts(tiny("llama")).info["tokenizer_hash"] is None


def test_device_map_places_the_model(saved: Path) -> None:
    lm = load(ModelSpec(path=saved / "base", device_map="auto"), "base")
    assert all(check.passed for check in lm.checks)


def test_a_family_entry_that_does_not_fit_is_refused() -> None:
    """A block that adds its attention twice breaks the residual identity, and only that names it."""
    model = tiny("llama")
    block = model.model.layers[1]
    block.register_forward_hook(lambda _m, args, out: out + 0.1 * args[0])
    with pytest.raises(ModelError, match=r"fails the residual identity.*llama family doesn't fit"):
        from_parts(model)


@pytest.mark.parametrize(
    ("family", "mistake", "identity"),
    [
        ("gemma2", {"attn_post_norm": None}, "residual"),
        ("gemma3_text", {"mlp_post_norm": None}, "residual"),
        ("olmo2", {"mlp_post_norm": None}, "residual"),
        ("granite", {"multiplier": None}, "residual"),
        ("granite", {"logit_scale": None}, "logits"),
        ("cohere", {"logit_scale": None}, "logits"),
        ("gpt_neox", {"qkv": "stacked"}, "values"),
        ("phi3", {"qkv": "interleaved"}, "values"),
        ("glm4", {"attn_post_norm": None}, "residual"),
        ("granitemoe", {"multiplier": None}, "residual"),
        ("gpt_neox", {"parallel": False}, "inputs"),
        ("cohere", {"parallel": False}, "inputs"),
        ("llama", {"parallel": True}, "inputs"),
        ("llama", {"mlp_norm": "input_layernorm"}, "inputs"),
        ("llama", {"input_norm": "post_attention_layernorm"}, "values"),
    ],
)
def test_each_kind_of_wrong_entry_is_found_out(
    family: str, mistake: dict[str, Any], identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"num_key_value_heads": 4} if family == "phi3" else {}
    model = tiny(family, **overrides)
    assert all(check.passed for check in from_parts(model).checks)
    monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], **mistake))
    with pytest.raises(ModelError, match=rf"fails the {identity} identity"):
        from_parts(model)


def test_a_fused_projection_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], transposed=False))
    with pytest.raises(ModelError, match=r"fused query-key-value projection.*96 rows.*Given: 32"):
        from_parts(tiny("gpt2"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_pass_within_their_rounding(dtype: torch.dtype) -> None:
    for family in ("qwen3", "gemma3_text", "granite", "gpt2"):
        lm = from_parts(tiny(family).to(dtype))
        assert lm.dtype == dtype
        # rounding is seen, and stays at about half a step of the dtype
        assert 0 < max(check.value for check in lm.checks) < torch.finfo(dtype).eps
