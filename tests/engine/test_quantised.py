"""Quantised checkpoints: unpacked to what their codes and scales say, by numpy, or refused by name."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_weights import compressed, fp8, with_settings
from peft import LoraConfig, get_peft_model
from tiny_models import tiny
from tiny_study import save_model
from transformers import AutoModelForCausalLM

from engine.errors import ModelError
from engine.models.loading import load
from engine.models.skeleton import planned
from engine.study.study import ModelSpec


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("block", "static"),
    [((16, 16), False), ((16, 8), False), ((128, 128), False), (None, False), (None, True)],
    ids=["blocks", "oblong blocks", "one block", "one scale", "static activations"],
)
def test_fp8_weights_are_what_codes_and_scales_say(
    tmp_path: Path, block: tuple[int, int] | None, static: bool, dtype: Any
) -> None:
    meant = fp8(tmp_path / "m", block, static)
    spec = ModelSpec(path=tmp_path / "m", dtype=dtype, device="cpu")
    notes: list[str] = []
    shape = planned(spec, notes)
    assert {parameter.dtype for parameter in shape.model.parameters()} == {getattr(torch, dtype)}
    lm = load(spec, "m")
    assert lm.info["notes"] == notes
    assert "quantised (FP8)" in notes[0]
    parameters = dict(lm.model.named_parameters())
    assert parameters.keys() == meant.keys()
    for name, weight in parameters.items():
        wanted = torch.from_numpy(meant[name]).float().to(lm.dtype)
        assert torch.equal(weight, wanted), name


def test_blocks_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    """48 rows in blocks of 32 are 32 + 16; transformers takes 24 + 24."""
    fp8(tmp_path / "m", (32, 32))
    with pytest.raises(ModelError, match=r"FP8 blocks that don't fill.*whole blocks of \(32, 32\)"):
        planned(ModelSpec(path=tmp_path / "m", device="cpu"))


def test_an_adapter_is_merged_into_unpacked_weights(tmp_path: Path) -> None:
    meant = fp8(tmp_path / "m", (16, 16))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    rows = meant["model.embed_tokens.weight"].shape[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(tiny("llama", vocab_size=rows), config).save_pretrained(str(tmp_path / "adapter"))
    lm = load(ModelSpec(path=tmp_path / "m", adapter=tmp_path / "adapter", device="cpu"), "m")
    (first, *_) = lm.factors
    wanted = meant[first] + lm.factors[first].product().numpy()
    np.testing.assert_allclose(lm.model.get_parameter(first).numpy(), wanted, atol=1e-5)


REFUSED = (
    *(
        "gptq",
        "awq",
        "aqlm",
        "auto-round",
        "bitnet",
        "eetq",
        "fbgemm_fp8",
        "fp_quant",
        "higgs",
        "hqq",
        "modelopt",
    ),
    *(
        "mxfp4",
        "nvfp4",
        "quanto",
        "quark",
        "spqr",
        "torchao",
        "vptq",
        "sinq",
        "metal",
        "a method of tomorrow",
    ),
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("plain") / "m", "llama")


@pytest.mark.parametrize("method", REFUSED)
def test_other_methods_are_refused_by_name(plain: Path, method: str) -> None:
    with_settings(plain, {"quant_method": method, "bits": 4})
    with pytest.raises(ModelError, match=r"is a quantised checkpoint .*Next: give the unquantised model"):
        planned(ModelSpec(path=plain, device="cpu"))


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors"),
    ],
)
def test_a_package_that_is_not_there_is_named(
    plain: Path, settings: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with_settings(plain, settings)
    with pytest.raises(ModelError, match=rf"no package {package}.*patchbay\[quantised\]"):
        planned(ModelSpec(path=plain, device="cpu"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes_weights_are_what_its_own_kernels_say(tmp_path: Path, kind: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="extra: quantised")
    from transformers import BitsAndBytesConfig

    folder = save_model(tmp_path / "m", "llama", hidden_size=64, intermediate_size=128)
    how = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        if kind == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, device_map="cpu")
    packed.save_pretrained(folder)
    spec = ModelSpec(path=folder, device="cpu")
    assert any("quantised (bitsandbytes)" in note for note in load(spec, "m").info["notes"])
    notes: list[str] = []
    planned(spec, notes)
    assert "quantised (bitsandbytes)" in notes[0]
    weight = load(spec, "m").model.model.layers[0].mlp.down_proj.weight
    own = packed.model.layers[0].mlp.down_proj.weight
    if kind == "nf4":
        wanted = bitsandbytes.functional.dequantize_4bit(own.data, own.quant_state).float()
    else:
        wanted = own.data.float() * own.SCB.float()[:, None] / 127
    torch.testing.assert_close(weight.data, wanted, atol=1e-6, rtol=1e-5)


def test_compressed_tensors_are_what_codes_and_scales_say(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="extra: quantised")
    folder = tmp_path / "m"
    meant = compressed(folder)
    spec = ModelSpec(path=folder, device="cpu")
    planned(spec)
    lm = load(spec, "m")
    for name, wanted in meant.items():
        np.testing.assert_allclose(lm.model.get_parameter(name).numpy(), wanted, rtol=1e-6)
