"""Models out of GGUF files: the values that the file's blocks say, its tokenizer, and clear refusals."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import LAYERS, tiny
from tiny_tokenizers import chatml

from engine.errors import ModelError, StudyError
from engine.models import sources
from engine.models.gguf_header import read_gguf_header
from engine.models.loading import load
from engine.models.skeleton import skeleton
from engine.models.sources import load_tokenizer
from engine.study.file_hashes import file_hash
from engine.study.study import ModelSpec, Study

pytest.importorskip("gguf", reason="the package gguf (extra: real) is not installed")
from tiny_gguf import SETTINGS, write_gguf

TEXTS = [
    "Tom has 17 apples, I'm told.",
    "小明有三个苹果",
    "  two  spaces\n\nand lines ",
    "<|im_start|>user\nHi<|im_end|>",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A Llama as Q4_1 and the weights that its blocks mean; never written to by a test."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    return path, write_gguf(path)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F32"])
@pytest.mark.parametrize("family", list(SETTINGS))
def test_weights_are_what_the_blocks_say(tmp_path: Path, family: str, kind: str) -> None:
    """Exactly, in float32; in bfloat16 each is that value rounded once."""
    path = tmp_path / "model.gguf"
    meant = write_gguf(path, family, kind)
    original = dict(tiny(family, **SETTINGS[family]).named_parameters())
    for dtype in ("float32", "bfloat16"):
        lm = load(ModelSpec(gguf=path, dtype=dtype, device="cpu"), "base")
        there = dict(lm.model.named_parameters())
        assert there.keys() == meant.keys()
        for name, weight in there.items():
            assert torch.equal(weight, meant[name].to(lm.dtype)), name
    # the oracle means the model that was written: half a step of 15 (Q4_1) or 127 levels and float16 scales
    step = {"Q4_1": 1 / 15, "Q8_0": 1 / 127, "F32": 0.0}[kind]
    for name, weight in original.items():
        spread = float(weight.max() - weight.min())
        assert float((meant[name] - weight).abs().max()) <= 0.6 * step * spread, name


@pytest.mark.parametrize("family", list(SETTINGS))
def test_it_computes_what_the_same_model_in_a_folder_does(tmp_path: Path, family: str) -> None:
    """Bit for bit, with a rotary base and an epsilon that are no defaults: no setting is lost."""
    path = tmp_path / "model.gguf"
    meant = write_gguf(path, family)
    plain = tiny(family, **SETTINGS[family])
    plain.load_state_dict(meant, strict=False)
    plain.save_pretrained(tmp_path / "folder")
    chatml().save_pretrained(tmp_path / "folder")
    one = load(ModelSpec(path=tmp_path / "folder", device="cpu"), "folder")
    other = load(ModelSpec(gguf=path, device="cpu"), "file")
    ids = torch.tensor([chatml().encode(TEXTS[0])])
    assert torch.equal(one.model(ids).logits, other.model(ids).logits)
    assert not hasattr(other.model.config, "quantization_config")
    assert other.info["source"] == str(path)
    assert other.info["files"] == {path.name: file_hash(path)}
    assert all(check.passed for check in other.checks)
    other.model.save_pretrained(tmp_path / "again")
    again = load(ModelSpec(path=tmp_path / "again", tokenizer=tmp_path / "folder", device="cpu"), "again")
    assert torch.equal(again.model(ids).logits, other.model(ids).logits)


def test_the_tokenizer_is_the_files(written: Written) -> None:
    tokenizer, expected = load_tokenizer(ModelSpec(gguf=written[0])), chatml()
    assert [tokenizer.encode(text) for text in TEXTS] == [expected.encode(text) for text in TEXTS]
    chat = [{"role": "user", "content": TEXTS[1]}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected.apply_chat_template(
        chat, tokenize=False
    )
    assert tokenizer.eos_token == expected.eos_token


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_goes_on_top(written: Written, tmp_path: Path, dtype: str) -> None:
    path, _ = written
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["o_proj"], layers_to_transform=[1], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        wrapped = get_peft_model(tiny("llama", **SETTINGS["llama"]), config)
    wrapped.peft_config["default"].base_model_name_or_path = path.name
    wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    base = load(ModelSpec(gguf=path, dtype=dtype, device="cpu"), "base").model.state_dict()
    tuned = load(ModelSpec(gguf=path, adapter=tmp_path / "adapter", dtype=dtype, device="cpu"), "tuned")
    changed = [
        name for name, weight in tuned.model.state_dict().items() if not torch.equal(weight, base[name])
    ]
    assert changed == ["model.layers.1.self_attn.o_proj.weight"]
    (note,) = tuned.info["notes"]
    assert "its weights are quantised (Q4_1) and unpacked" in note


def test_a_plan_reads_no_weights(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    def fail(*_: object) -> None:
        raise AssertionError("weights were unpacked")

    monkeypatch.setattr(gguf, "dequantize", fail)
    shape = skeleton(ModelSpec(gguf=written[0]))
    assert (shape.n_layers, shape.d, shape.n_heads) == (LAYERS, 32, 4)
    assert all(parameter.is_meta for parameter in shape.embed.parameters())


def test_the_header_is_read_as_it_was_written(written: Written) -> None:
    path, meant = written
    header = read_gguf_header(path)
    assert header.architecture == "llama"
    assert header.settings["llama.embedding_length"] == 32
    assert header.settings["general.name"] == "tiny"
    assert header.numbers == sum(weight.numel() for weight in meant.values())
    assert header.shapes["token_embd.weight"] == (32, 455)
    assert "tokenizer.ggml.tokens" not in header.settings


def test_a_study_names_the_file_beside_it_and_knows_its_content(written: Written, tmp_path: Path) -> None:
    def study(folder: Path, **model: str) -> Study:
        return Study.from_dict(
            {"name": "s", "models": {"base": model}, "prompts": {"files": ["p.jsonl"]}}, folder
        )

    shutil.copy(written[0], tmp_path / "a.gguf")
    shutil.copy(written[0], tmp_path / "b.gguf")
    (tmp_path / "p.jsonl").write_text('{"id": "1", "text": "Hi"}\n')
    one, other = study(tmp_path, gguf="a.gguf"), study(tmp_path, gguf="b.gguf")
    assert one.models["base"].gguf == tmp_path / "a.gguf"
    assert one.to_json()["models"]["base"]["gguf"] == "a.gguf"
    assert Study.from_json(one.to_json(), tmp_path).models == one.models
    assert one.fingerprint() == other.fingerprint()
    with open(tmp_path / "b.gguf", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert one.fingerprint() != other.fingerprint()
    with pytest.raises(StudyError, match=r"models\.base\.gguf names something that isn't there"):
        study(tmp_path, gguf="c.gguf").check_files()
    there = study(tmp_path, hub="some/one", gguf="c.gguf")
    assert there.models["base"].gguf == "c.gguf"
    there.check_files()
    assert Study.from_json(there.to_json(), tmp_path).models == there.models
    for wrong in ({"path": ".", "gguf": "a.gguf"}, {"hub": "a/b", "path": "."}, {}):
        with pytest.raises(StudyError, match="exactly one of 'hub', 'path' and 'gguf'"):
            study(tmp_path, **wrong)


def test_a_file_on_the_hub_is_asked_for_by_its_name(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: the error names repository and file, and says what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ModelError, match=r"nobody/nothing/x\.gguf could not be loaded.*connect to the network"
    ):
        skeleton(ModelSpec(hub="nobody/nothing", gguf="x.gguf"))


def test_without_the_package_the_extra_is_named(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(ModelError, match=r"takes the package gguf.*patchbay\[real\]"):
        load(ModelSpec(gguf=written[0]), "base")


def test_what_is_no_gguf_file_is_refused(saved_text: Path, tmp_path: Path) -> None:
    for path, given in ((saved_text, "one that starts with b'Hell'"), (tmp_path, "a folder")):
        with pytest.raises(ModelError, match=rf"is not a GGUF file.*{given}"):
            load(ModelSpec(gguf=path), "base")
    with pytest.raises(ModelError, match="nothing at that path"):
        load(ModelSpec(gguf=tmp_path / "absent.gguf"), "base")


@pytest.fixture
def saved_text(tmp_path: Path) -> Path:
    path = tmp_path / "text.gguf"
    path.write_text("Hello, this is text.")
    return path


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.9999])
def test_a_file_that_ends_early_is_refused(written: Written, tmp_path: Path, share: float) -> None:
    whole = written[0].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: max(6, int(share * len(whole)))])
    with pytest.raises(ModelError, match=r"can't be read|could not be loaded"):
        load(ModelSpec(gguf=path), "base")


def test_a_damaged_header_never_ends_in_a_traceback(written: Written, tmp_path: Path) -> None:
    """A bit turned over in the first bytes is refused by name, unless it only changes a word or a number."""
    whole = bytearray(written[0].read_bytes())
    path = tmp_path / "flipped.gguf"
    refused = 0
    for at in range(4, 700, 29):
        damaged = bytearray(whole)
        damaged[at] ^= 0x80
        path.write_bytes(damaged)
        try:
            skeleton(ModelSpec(gguf=path))
        except ModelError:
            refused += 1
    assert refused >= 12


@pytest.mark.parametrize("arch", ["frobnicate", "gemma2"])
def test_another_architecture_is_refused(tmp_path: Path, arch: str) -> None:
    """One that nobody knows, and one that transformers reads with some settings from defaults."""
    write_gguf(tmp_path / "m.gguf", arch=arch)
    for read in (skeleton, lambda spec: load(spec, "base")):
        with pytest.raises(ModelError, match=rf"llama or qwen2 or qwen3.*{arch}.*Hugging Face format"):
            read(ModelSpec(gguf=tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "more",
    [
        {"tensors": {"rope_freqs.weight": np.ones(4, np.float32)}},
        {"settings": {"llama.rope.scaling.type": "yarn"}},
    ],
    ids=["tensor", "setting"],
)
def test_scaled_rotary_positions_are_refused(tmp_path: Path, more: dict[str, object]) -> None:
    """transformers drops both: the model would run with other positions than it was trained with."""
    write_gguf(tmp_path / "m.gguf", **more)
    for read in (skeleton, lambda spec: load(spec, "base")):
        with pytest.raises(ModelError, match="llama, scaled rotary positions"):
            read(ModelSpec(gguf=tmp_path / "m.gguf"))


def test_a_tensor_that_would_be_dropped_is_an_error(tmp_path: Path) -> None:
    bias = np.full(32, 0.5, np.float32)
    write_gguf(tmp_path / "m.gguf", tensors={"blk.0.attn_output.bias": bias})
    with pytest.raises(ModelError, match=r"holds other tensors than transformers reads"):
        load(ModelSpec(gguf=tmp_path / "m.gguf"), "base")


def test_nothing_is_printed_that_another_load_would_not_print(
    written: Written, capfd: pytest.CaptureFixture[str]
) -> None:
    sources._read_once.cache_clear()
    load(ModelSpec(gguf=written[0], device="cpu"), "base")
    shown = capfd.readouterr()
    assert "GGUF" not in shown.out + shown.err
