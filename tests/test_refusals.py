"""What can't work is refused before any work, by name, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from tiny_study import save_model, write_study
from tiny_tokenizers import chatml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

import precompute
from app.build.build import build
from engine.errors import CaptureError, ModelError, PatchbayError, StudyError
from engine.study.study import Study

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("refusals"), pairs=3, positions=["decision"])


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made.parent, tmp_path / "study") / "study.toml"


def plan(study: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What --plan says of a study that it refuses."""
    assert precompute.main([str(study), "--plan"]) == 1
    return capsys.readouterr().err


def changed(study: Path, old: str, new: str) -> None:
    text = study.read_text(encoding="utf-8")
    assert old in text
    study.write_text(text.replace(old, new), encoding="utf-8")


def with_weights(study: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tuned model's file of weights."""
    place = study.parent / "tuned" / WEIGHTS
    tensors = load_file(place)
    change(tensors)
    save_file(tensors, place, metadata={"format": "pt"})


def with_config(study: Path, **more: Any) -> None:
    place = study.parent / "tuned" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text(encoding="utf-8")) | more), encoding="utf-8")


def cut(study: Path) -> None:
    place = study.parent / "tuned" / WEIGHTS
    place.write_bytes(place.read_bytes()[:-100])


def unmerged(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(4, 32)


def scaled(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight_scale"] = torch.ones(1)


def biased(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.self_attn.k_proj.bias"] = torch.ones(32)


def wider(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(33)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, "could not be loaded"),
    "lacking": (
        lambda s: with_weights(s, lambda t: t.pop("model.norm.weight")),
        "lacks 1 of .*norm",
    ),
    "wider": (lambda s: with_weights(s, wider), "could not be loaded .*size"),
    "adapter": (lambda s: with_weights(s, unmerged), r"beside them.*lora_A.*merge the adapter"),
    "scale": (lambda s: with_weights(s, scaled), r"down_proj\.weight_scale.*unquantised"),
    "bias": (lambda s: with_weights(s, biased), r"k_proj\.bias.*switch the bias on"),
    "gptq": (
        lambda s: with_config(s, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised checkpoint \(GPTQ\)",
    ),
    "nonsense": (lambda s: with_config(s, num_attention_heads=-3), "tuned"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used_is_refused_by_the_plan(
    name: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, says = CHECKPOINTS[name]
    change(study)
    with pytest.raises(PatchbayError, match=says):
        build(Study.load(study), study.parent / "new" / "store", quiet=True)
    assert not (study.parent / "new").exists()
    assert "tuned" in plan(study, capsys)


def test_tensors_that_belong_to_no_used_module_are_a_note(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ("score.weight", "mtp.layers.0.self_attn.q_proj.bias", "vision_tower.layers.0.fc.weight_scale")
    with_weights(study, lambda tensors: tensors.update({name: torch.ones(2) for name in others}))
    assert precompute.main([str(study), "--plan"]) == 0
    assert "note: model tuned: 3 tensors" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["t5", "clip", "bert", "whisper", "mamba"])
def test_other_kinds_of_model_are_refused_by_name(
    kind: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoConfig.for_model(kind).save_pretrained(study.parent / "tuned")
    assert f"ModelError: The model family '{kind}' is not known" in plan(study, capsys)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def without_tokenizer(folder: Path) -> None:
    for place in folder.glob("*token*"):
        place.unlink()
    for place in folder.glob("*.jinja"):
        place.unlink()


def test_a_model_without_tokenizer_files_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_tokenizer(study.parent / "tuned")
    assert "There are no tokenizer files in" in plan(study, capsys)


def test_a_model_takes_another_ones_tokenizer_if_the_study_says_so(study: Path) -> None:
    without_tokenizer(study.parent / "tuned")
    (study.parent / "base").rename(study.parent / "first")
    changed(study, 'path = "base"', 'path = "first"')
    changed(study, 'path = "tuned"', 'path = "tuned"\ntokenizer = "base"')
    store = build(Study.load(study), study.parent / "store", quiet=True)
    assert store.table("tokens-tuned").equals(store.table("tokens-base"))


def test_a_tokenizer_of_another_size_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_tokenizer(study.parent / "tuned")
    word_tokenizer(["Tom", "has"]).save_pretrained(study.parent / "tuned")
    assert "knows far fewer tokens than the model has embeddings" in plan(study, capsys)


def test_prompts_that_the_tokenizer_does_not_know_are_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_tokenizer(study.parent / "tuned")
    word_tokenizer([f"word{i}" for i in range(300)]).save_pretrained(study.parent / "tuned")
    changed(study, "[capture]", 'template = "plain"\n[capture]')
    said = plan(study, capsys)
    assert "knows little: most of their tokens are '<unk>'" in said
    assert "6 of 6 prompts" in said


def test_one_prompt_is_refused_and_leaves_no_folder(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study.parent / "prompts.jsonl").write_text('{"id": "a", "text": "Tom"}', encoding="utf-8")
    assert "A study of one prompt compares nothing" in plan(study, capsys)
    with pytest.raises(PatchbayError):
        build(Study.load(study), study.parent / "store", quiet=True)
    assert not (study.parent / "store").exists()


def test_a_weight_diff_that_does_not_fit_is_refused_by_the_plan(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(study, 'path = "tuned"', 'path = "base"\nweight_diff = "diff.safetensors"')
    place = study.parent / "diff.safetensors"
    for delta, says in (
        ({"model.norm.weight": torch.ones(31)}, "wrong shape"),
        ({"model.other.weight": torch.ones(32)}, "which the model doesn't have"),
        ({"model.norm.weight": torch.full((32,), float("nan"))}, "not finite"),
    ):
        save_file(delta, place)
        assert says in plan(study, capsys)
    place.write_bytes(struct.pack("<Q", 1000) + b"{}")
    assert "diff.safetensors cannot be read" in plan(study, capsys)


def spoil_first(study: Path) -> None:
    """A refusal that only the weights themselves can give."""
    place = study.parent / "base" / WEIGHTS
    tensors = load_file(place)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, place, metadata={"format": "pt"})


@pytest.mark.parametrize("there", ["nothing", "an empty folder"])
def test_a_refusal_while_loading_leaves_the_place_as_it_was(study: Path, tmp_path: Path, there: str) -> None:
    spoil_first(study)
    root = tmp_path / "new" / "deeper" / "store"
    if there != "nothing":
        root.mkdir(parents=True)
    with pytest.raises(ModelError, match="not finite"):
        build(Study.load(study), root, quiet=True)
    if there == "nothing":
        assert not (tmp_path / "new").exists()
    else:
        assert list(root.iterdir()) == []


def test_numbers_that_are_not_finite_are_refused_before_a_capture(study: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    with_weights(study, spoil)
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds numbers that are not finite"):
        build(Study.load(study), tmp_path / "store", quiet=True)
    assert not (tmp_path / "store").exists()


def test_numbers_that_are_not_finite_and_not_used_refuse_nothing(study: Path, tmp_path: Path) -> None:
    with_weights(study, lambda tensors: tensors.update({"score.weight": torch.full((2,), float("nan"))}))
    build(Study.load(study), tmp_path / "store", quiet=True)


def test_a_refusal_after_a_capture_keeps_what_was_captured(study: Path, tmp_path: Path) -> None:
    def overflowing(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("mlp.down_proj", "mlp.up_proj"):
            tensors[f"model.layers.1.{name}.weight"] *= 1e30

    with_weights(study, overflowing)
    with pytest.raises(ModelError, match="numbers that are not finite, from"):
        build(Study.load(study), tmp_path / "store", quiet=True)
    assert sorted(path.name for path in (tmp_path / "store" / "ledger").glob("base-*")) == [
        "base-00000.json",
        "base-00001.json",
    ]


def test_a_store_that_was_there_stays_as_it_was(study: Path, tmp_path: Path) -> None:
    build(Study.load(study), tmp_path / "store", quiet=True)
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    spoil_first(study)
    with pytest.raises(PatchbayError, match="another study"):
        build(Study.load(study), tmp_path / "store", quiet=True)
    assert {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("Base", "base"), "differ in case only"),
        (("base", "con"), "keeps for a device"),
        (("base", "LPT1.v2"), "keeps for a device"),
        (("base", "tuned."), "not at its ends"),
        (("base", "-tuned"), "may use letters"),
    ],
)
def test_names_that_are_no_folders_name_everywhere_are_refused(
    study: Path, names: tuple[str, str], says: str
) -> None:
    changed(study, "[models.base]", f'[models."{names[0]}"]')
    changed(study, "[models.tuned]", f'[models."{names[1]}"]')
    with pytest.raises(StudyError, match=says):
        Study.load(study)


def test_float16_that_overflows_is_told_with_its_block(study: Path) -> None:
    model = tiny("qwen3", vocab_size=AutoConfig.from_pretrained(study.parent / "base").vocab_size)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3e4)
    model.save_pretrained(study.parent / "base")
    changed(study, 'path = "base"', 'path = "base"\ndtype = "float16"')
    with pytest.raises(ModelError, match=r"'base'.*not finite.*block 1.*float16 ends at 65504.*bf") as caught:
        build(Study.load(study), study.parent / "store", quiet=True)
    assert "families" not in str(caught.value)


def test_a_prompt_that_overflows_is_named(study: Path) -> None:
    """One word lies at float16's end in two directions, and block 0 writes opposite amounts into them."""
    rows = [json.loads(line) for line in (study.parent / "prompts.jsonl").read_text("utf-8").splitlines()]
    tokens = {row["id"]: set(chatml()(row["text"])["input_ids"]) for row in rows}
    own = tokens["p1-en"].difference(*(tokens[name] for name in tokens if name != "p1-en"))
    save_model(study.parent / "base", tie_word_embeddings=False)
    place = study.parent / "base" / WEIGHTS
    tensors = load_file(place)
    tensors["model.embed_tokens.weight"][sorted(own), 3:5] = 65504.0
    mlp = tensors["model.layers.0.mlp.down_proj.weight"]
    mlp[3] = 1e4 * mlp[3]
    mlp[4] = -mlp[3]
    save_file(tensors, place, metadata={"format": "pt"})
    changed(study, 'path = "base"', 'path = "base"\ndtype = "float16"')
    with pytest.raises(CaptureError, match=r"'base'.*not finite.*layer \d.*prompt 'p1-en'\. .*bfloat16"):
        build(Study.load(study), study.parent / "store", quiet=True)
    assert not (study.parent / "store").exists()


def test_save_model_is_loadable(tmp_path: Path) -> None:
    """The plan of an untouched study says nothing, so that the refusals above mean something."""
    save_model(tmp_path / "base")
    save_model(tmp_path / "tuned")
    assert precompute.main([str(write_study(tmp_path, pairs=2)), "--plan"]) == 0


@pytest.mark.parametrize("switch", [10, 40, 4000])
def test_prompts_on_both_sides_of_a_rotary_switch_are_a_note(
    study: Path, switch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("base", "tuned")):
        scaling = {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [1.5, 3.0, 6.0, 12.0],
        }
        scaling["original_max_position_embeddings"] = switch
        lengths = {"max_position_embeddings": 8000, "original_max_position_embeddings": switch}
        save_model(study.parent / name, "phi3", seed, rope_parameters=scaling, **lengths)
    assert precompute.main([str(study), "--plan"]) == 0
    assert ("longer than 40 tokens" in capsys.readouterr().out) == (switch == 40)
    if switch == 40:  # with every self-check passed
        build(Study.load(study), study.parent / "store", quiet=True)
