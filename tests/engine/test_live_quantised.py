"""Quantised checkpoints that run as they are: by layers of codes made here, and by those of bitsandbytes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import patch_oracle
import pytest
import torch
from packed_weights import compressed, fp8, with_settings
from tiny_models import random_tokens, tiny
from tiny_study import save_model, write_study
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from app.build.build import build
from app.build.prepare import Prepared
from engine.errors import ModelError, PatchError, StudyError
from engine.models.identities import LIMITS, LIVE
from engine.models.loading import from_parts, load
from engine.models.quantised import check_live
from engine.models.sites import Site
from engine.models.skeleton import planned
from engine.models.sources import config_of
from engine.passes.attribution import gradients
from engine.passes.generate import generate
from engine.passes.live import plain_weight, runs_on_codes
from engine.passes.patch_engine import PatchEngine
from engine.study.study import ModelSpec, Study
from engine.weights.deltas import WeightDelta
from engine.weights.steer import WeightShift


class Coded(nn.Linear):
    """FP8 codes with a scale a block; `rounds`: what comes in is rounded to FP8 first, token by token."""

    block_size = (16, 16)
    rounds = False

    @staticmethod
    def of(layer: nn.Linear, rounds: bool) -> Coded:
        made = Coded(layer.in_features, layer.out_features, layer.bias is not None)
        blocks = tuple(-(-size // 16) for size in layer.weight.shape)
        scales = torch.rand(blocks, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.002
        spread = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)
        codes = layer.weight.detach() / spread[: layer.out_features, : layer.in_features]
        made.weight = nn.Parameter(codes.clamp(-448, 448).to(torch.float8_e4m3fn), requires_grad=False)
        made.weight_scale_inv = nn.Parameter(scales)
        made.bias, made.rounds = layer.bias, rounds
        return made

    def meant(self) -> Tensor:
        spread = self.weight_scale_inv.repeat_interleave(16, 0).repeat_interleave(16, 1)
        return self.weight.float() * spread[: self.out_features, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds:
            scale = x.abs().amax(-1, keepdim=True) / 448
            x = (x / scale).to(torch.float8_e4m3fn).float() * scale
        return nn.functional.linear(x, self.meant(), self.bias)


def coded(rounds: bool) -> Any:
    model = tiny("llama")
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(part, name, Coded.of(layer, rounds))
    return model


@pytest.mark.parametrize("rounds", [False, True])
def test_a_model_of_codes_is_read_within_what_its_rounding_leaves(rounds: bool) -> None:
    lm = from_parts(coded(rounds))
    assert lm.live
    assert not from_parts(tiny("llama")).live
    limits = {check.name: check.limit for check in lm.checks}
    assert limits["heads identity"] == limits["values identity"] == LIVE
    assert limits["residual identity"] == limits["logits identity"] == LIMITS[torch.float32]
    values = {check.name: check.value for check in lm.checks}
    assert (values["heads identity"] > 1e-3) == rounds, "rounded inputs are what the wider limit is for"
    layer = lm.taps.layers[1]
    torch.testing.assert_close(layer.w_o().flatten(0, 1).T, layer.o_proj.meant())
    torch.testing.assert_close(plain_weight(layer.attn.v_proj), layer.attn.v_proj.meant())


def test_a_wrong_entry_is_still_refused() -> None:
    model = coded(True)
    model.model.layers[1].self_attn.o_proj.weight_scale_inv.data *= 1  # as it is: accepted
    from_parts(model)
    projection = model.model.layers[1].self_attn.o_proj
    projection.forward = lambda x: nn.functional.linear(x.flip(-1), projection.meant(), projection.bias)
    with pytest.raises(ModelError, match="fails the heads identity"):
        from_parts(model)


def test_patches_and_answers_of_a_model_of_codes_are_those_of_plain_hooks() -> None:
    lm = from_parts(coded(False))
    ids = [random_tokens(1, n, seed=n)[0].tolist() for n in (9, 5, 12)]
    positions = [4, 4, 7]
    engine = PatchEngine(lm, ids, positions)
    for site in (Site("resid_post", 0), Site("attn_out", 1), Site("head_z", 1, (1,)), Site("head_out", 1)):
        vectors = engine.activations(site).roll(1, 0)[None]
        found = engine.sweep(site, vectors, n_conditions=1, top_k=101)
        for row, tokens in enumerate(ids):
            with patch_oracle.patched(lm.taps, site, positions[row], vectors[:, row]):
                wanted = patch_oracle.log_probs(lm.model, tokens, engine.reads[row], batch=1)
            own = torch.tensor(found.top_log_probs)[0, row].double()
            order = torch.tensor(found.top_ids)[0, row]
            torch.testing.assert_close(own, wanted[0][order], rtol=0, atol=1e-5)
    made = generate(lm, ids, max_new_tokens=4, stop=[]).tokens[0]
    for tokens, answer in zip(ids, made, strict=True):
        out = lm.model.generate(
            torch.tensor([tokens]), do_sample=False, max_new_tokens=4, eos_token_id=None, pad_token_id=0
        )
        assert out[0, len(tokens) :].tolist() == answer


def test_a_gradient_that_layers_of_codes_do_not_give_is_refused_by_name() -> None:
    class Fixed(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(_context: Any, *_: Any) -> Any:
            raise NotImplementedError("no backward of these kernels")

    lm, ids = from_parts(coded(False)), [random_tokens(1, 7)[0].tolist()]
    assert float(gradients(lm, ids, [3], [6], [1]).at_output[1].norm()) > 0
    layer = lm.taps.layers[2].mlp.down_proj
    own = layer.forward
    layer.forward = lambda x: own(Fixed.apply(x))
    with pytest.raises(PatchError, match=r"quantised layers of 'model' on cpu.*no backward of these"):
        gradients(lm, ids, [3], [6], [1])


def test_weights_of_a_model_of_codes_are_not_steered() -> None:
    lm = from_parts(coded(False))
    delta = WeightDelta("model.layers.0.self_attn.o_proj.weight", (32, 32), 1.0, 1.0, None, 0.0)
    with pytest.raises(ModelError, match=r"can't be steered: it runs on quantised ones"):
        WeightShift(lm, [delta])


def test_the_plan_refuses_what_cannot_run_as_it_is(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", "llama")
    with pytest.raises(ModelError, match="can't run as it is: it isn't quantised"):
        planned(ModelSpec(path=plain, quantised="live", device="cpu"))
    fp8(tmp_path / "fp8", (16, 16))
    with pytest.raises(ModelError, match=r"FP8 layers run on CUDA alone.*device cpu"):
        planned(ModelSpec(path=tmp_path / "fp8", quantised="live", device="cpu"))
    diff = tmp_path / "diff.safetensors"
    diff.write_bytes(b"")
    with pytest.raises(ModelError, match="an adapter or a weight diff can't be merged into codes"):
        planned(ModelSpec(path=tmp_path / "fp8", weight_diff=diff, quantised="live", device="cpu"))
    packed = ModelSpec(gguf=plain / "m.gguf", quantised="live")
    with pytest.raises(ModelError, match="GGUF files are unpacked"):
        check_live(packed, config_of(ModelSpec(path=plain)), "m.gguf")
    with_settings(plain, {"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"is a quantised checkpoint \(GPTQ\)"):
        planned(ModelSpec(path=plain, quantised="live", device="cpu"))


def test_unpacked_is_the_default_and_means_what_it_meant(tmp_path: Path) -> None:
    study = Study.load(write_study(tmp_path))
    data = study.to_json()
    assert data["models"]["base"].pop("quantised") is None
    old = Study.from_json(data)
    assert old.fingerprint() == study.fingerprint()
    data["models"]["base"]["quantised"] = "live"
    assert Study.from_json(data).fingerprint() != study.fingerprint()


@pytest.fixture(scope="module", params=["nf4", "int8"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a base and of itself in bitsandbytes' codes, run as they are."""
    pytest.importorskip("bitsandbytes", reason="extra: quantised")
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate(("base", "tuned")):
        save_model(folder / name, "llama", seed=seed, hidden_size=64, intermediate_size=128)
    how = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        if request.param == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    AutoModelForCausalLM.from_pretrained(
        folder / "tuned", quantization_config=how, device_map="cpu"
    ).save_pretrained(folder / "tuned")
    return folder


def test_bitsandbytes_runs_as_transformers_runs_it(packed: Path) -> None:
    spec = ModelSpec(path=packed / "tuned", device="cpu", quantised="live")
    notes: list[str] = []
    planned(spec, notes)
    lm = load(spec, "tuned")
    assert lm.live
    assert runs_on_codes(lm.model)
    assert notes == lm.info["notes"]
    assert "it runs on them as they are" in notes[0]
    tokens = random_tokens(2, 9)
    own = AutoModelForCausalLM.from_pretrained(packed / "tuned", device_map="cpu", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(lm.model(tokens).logits, own(tokens).logits)
    unpacked = load(spec.model_copy(update={"quantised": None}), "tuned")
    # laid out anew for a processor, four-bit codes have their scales in bfloat16
    for mine, theirs in zip(lm.taps.layers, unpacked.taps.layers, strict=True):
        torch.testing.assert_close(mine.w_o(), theirs.w_o(), rtol=2**-8, atol=1e-6)
        torch.testing.assert_close(mine.w_v(), theirs.w_v(), rtol=2**-8, atol=1e-6)


def test_compressed_tensors_run_as_transformers_runs_them(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="extra: quantised")
    meant = compressed(tmp_path / "m")
    lm = load(ModelSpec(path=tmp_path / "m", device="cpu", quantised="live"), "m")
    assert lm.live
    for index, layer in enumerate(lm.taps.layers):
        wanted = meant[f"model.layers.{index}.self_attn.o_proj.weight"]
        np.testing.assert_allclose(plain_weight(layer.o_proj).numpy(), wanted, rtol=1e-6)
    tokens = random_tokens(2, 9)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "m", device_map="cpu", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(lm.model(tokens).logits, own(tokens).logits)


def test_a_store_of_a_live_model_has_its_activations_and_unpacked_weights(packed: Path) -> None:
    data = {
        "name": "live",
        "models": {name: {"path": name, "device": "cpu"} for name in ("base", "tuned")},
        "prompts": {"files": ["prompts.jsonl"], "template": "plain"},
        "capture": {"positions": ["decision"], "dtype": "float32"},
    }
    rows = [{"id": f"p{i}", "text": "Tom has " + "apples " * (i + 1)} for i in range(8)]
    (packed / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    unpacked = build(Study.from_dict(data, packed), packed / "unpacked", quiet=True)
    data["models"]["tuned"]["quantised"] = "live"
    live = build(Study.from_dict(data, packed), packed / "live", quiet=True)
    own = AutoModelForCausalLM.from_pretrained(packed / "tuned", device_map="cpu", dtype=torch.float32)
    for row, ids in enumerate(live.tokens("tuned")["token_ids"].to_list()):
        with torch.no_grad():
            states = own(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found = live.activations("tuned", "resid_post", 1, "decision")[row]
        assert np.linalg.norm(found - states[2][0, -1].numpy()) < 5e-2 * np.linalg.norm(found)
    assert live.table("weight-delta-tuned").equals(unpacked.table("weight-delta-tuned"))
    name = next(n for n in live.array_names() if n.startswith("weights/tuned/delta"))
    np.testing.assert_array_equal(live.array(name), unpacked.array(name))
    assert any("it runs on them as they are" in note for note in live.manifest["models"]["tuned"]["notes"])
    data["subspaces"] = {"positive": ["a"], "negative": ["b"]}
    data["models"]["base"] = data["models"]["tuned"]
    with pytest.raises(StudyError, match="Subspace scores need plain weights"):
        Prepared.of(Study.from_dict(data, packed))
