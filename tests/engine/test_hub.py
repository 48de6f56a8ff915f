"""Conventions of the Hub, on a cache made by hand: shards, subfolders, variants, revisions, adapters."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from tiny_study import save_model
from transformers import AutoModelForCausalLM

from engine.errors import ModelError, StudyError
from engine.models.loading import load
from engine.models.skeleton import planned
from engine.models.sources import Source, pretrained
from engine.study.study import ModelSpec, Study

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("hub") / "plain", "llama")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub that transformers reads from."""
    root = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(root))
    return root


def cached(
    cache: Path, folder: Path, name: str = "lab/model", commit: str = COMMIT, inside: str = ""
) -> Path:
    """Puts a folder into the cache as a snapshot, of `main` too."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, place / "snapshots" / commit / inside, dirs_exist_ok=True))


def sharded(folder: Path, to: Path, form: str) -> Path:
    """The same model in four files and an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, to)
    (to / "model.safetensors").unlink()
    if form == "safetensors":
        model.save_pretrained(to, max_shard_size="20KB")
        return to
    names = list(model.state_dict())
    index = {}
    for number in range(4):
        file = f"pytorch_model-{number + 1:05}-of-00004.bin"
        part = {name: model.state_dict()[name] for name in names[number::4]}
        torch.save(part, to / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (to / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    return to


def same(spec: ModelSpec, folder: Path) -> None:
    """Planned and loaded, the model's weights are a folder's, bit by bit."""
    assert planned(spec).n_layers == 3
    own = load(spec, "m").model.state_dict()
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(own[name], weight)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("where", ["path", "hub"])
def test_shards_are_put_together(plain: Path, tmp_path: Path, cache: Path, form: str, where: str) -> None:
    folder = sharded(plain, tmp_path / "m", form)
    assert len(list(folder.glob(f"*.{form}"))) > 3
    cached(cache, folder)
    same(ModelSpec(**{where: folder if where == "path" else "lab/model"}, device="cpu"), plain)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_shard_that_is_not_there_is_named(plain: Path, tmp_path: Path, form: str) -> None:
    folder = sharded(plain, tmp_path / "m", form)
    lost = sorted(folder.glob(f"*.{form}"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=rf"index\.json names files that aren't there.*no {lost.name}"):
        planned(ModelSpec(path=folder, device="cpu"))


def test_an_index_of_what_is_not_read_changes_nothing(plain: Path, tmp_path: Path) -> None:
    """Downloads without the .bin files keep their index."""
    folder = Path(shutil.copytree(plain, tmp_path / "m"))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    same(ModelSpec(path=folder, device="cpu"), plain)


def test_a_subfolder_is_read_and_told(plain: Path, cache: Path) -> None:
    cached(cache, plain, inside="checkpoints/last")
    same(ModelSpec(hub="lab/model", subfolder="checkpoints/last", device="cpu"), plain)
    info = load(ModelSpec(hub="lab/model", subfolder="checkpoints/last", device="cpu"), "m").info
    assert info["source"] == "lab/model/checkpoints/last"
    assert info["revision"] == COMMIT
    with pytest.raises(ModelError, match="lab/model could not be loaded"):
        planned(ModelSpec(hub="lab/model", device="cpu"))


@pytest.mark.parametrize("where", ["path", "hub"])
def test_a_variant_is_read(plain: Path, tmp_path: Path, cache: Path, where: str) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "m"))
    tensors = {name: 2 * weight for name, weight in load_file(plain / "model.safetensors").items()}
    save_file(tensors, folder / "model.double.safetensors", metadata={"format": "pt"})
    cached(cache, folder)
    given: dict[str, Any] = {where: folder if where == "path" else "lab/model", "device": "cpu"}
    same(ModelSpec(**given), plain)
    own = load(ModelSpec(**given, variant="double"), "m").model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in tensors.items())
    with pytest.raises(ModelError, match="half"):
        load(ModelSpec(**given, variant="half"), "m")


def test_a_revision_is_that_commit(plain: Path, tmp_path: Path, cache: Path) -> None:
    older = save_model(tmp_path / "older", "llama", seed=5)
    cached(cache, older, commit=OTHER)
    cached(cache, plain)
    same(ModelSpec(hub="lab/model", device="cpu"), plain)
    same(ModelSpec(hub="lab/model", revision=OTHER, device="cpu"), older)
    with pytest.raises(ModelError, match=r"lab/model could not be loaded.*at revision v2"):
        planned(ModelSpec(hub="lab/model", revision="v2", device="cpu"))


def test_what_is_not_here_is_told_with_what_to_do(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"lab/absent could not be loaded.*connect to the network"):
        planned(ModelSpec(hub="lab/absent", device="cpu"))


def test_a_gated_model_is_told_with_what_to_do() -> None:
    class Gated:
        @staticmethod
        def from_pretrained(*_: object, **__: object) -> None:
            raise OSError("You are trying to access a gated repo. Make sure to have access to it at …")

    with pytest.raises(ModelError, match="ask for access on the model's page, then log in"):
        pretrained(Gated, Source("lab/gated", False))


def adapter(folder: Path, base: str, form: str = "safetensors", revision: str | None = None) -> Path:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, revision=revision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny("llama", vocab_size=449), config)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(str(folder), safe_serialization=form == "safetensors")
    if form == "bin" and not (folder / "adapter_model.bin").exists():
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    return folder


def test_an_old_adapter_in_bin_is_read(plain: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    new = adapter(tmp_path / "new", "plain")
    old = Path(shutil.copytree(new, tmp_path / "old"))
    torch.save(load_file(old / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_model.safetensors").unlink()
    one, two = (ModelSpec(path=plain, adapter=place, device="cpu") for place in (new, old))
    planned(two)
    own = load(two, "m").model.state_dict()
    changed = load(one, "m").model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in changed.items())
    assert not torch.equal(
        own["model.layers.0.self_attn.q_proj.weight"],
        load_file(plain / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"],
    )


@pytest.mark.parametrize(
    ("base", "revision", "says"),
    [
        ("plain", None, None),
        ("lab/plain", None, None),
        ("", None, None),
        ("lab/quite-another", None, "was trained on lab/quite-another, here it is put on"),
    ],
)
def test_the_base_that_an_adapter_names_is_held_against_the_studys(
    plain: Path, tmp_path: Path, base: str, revision: str | None, says: str | None
) -> None:
    place = adapter(tmp_path / "adapter", base, revision=revision)
    spec = ModelSpec(path=plain, adapter=place, device="cpu")
    notes: list[str] = []
    planned(spec, notes)
    for told in (notes, load(spec, "m").info["notes"]):
        assert (says is None) == (told == [])
        assert says is None or says in told[0]


def test_another_revision_of_the_base_is_a_note(plain: Path, tmp_path: Path, cache: Path) -> None:
    cached(cache, plain)
    place = adapter(tmp_path / "adapter", "lab/model", revision=OTHER)
    notes: list[str] = []
    planned(ModelSpec(hub="lab/model", revision=COMMIT, adapter=place, device="cpu"), notes)
    assert f"was trained on revision {OTHER}, not {COMMIT}" in notes[0]


@pytest.mark.parametrize(
    "lines",
    [
        'path = "m"\nsubfolder = "x"',
        'hub = "lab/model"\nsubfolder = "../x"',
        'hub = "lab/model"\nvariant = "/etc"',
        'hub = "lab/model"\ngguf = "m.gguf"\nvariant = "x"',
    ],
)
def test_a_part_that_cannot_be_is_refused(tmp_path: Path, lines: str) -> None:
    study = tmp_path / "study.toml"
    text = f'name = "s"\n[models.m]\n{lines}\n[prompts]\nfiles = ["p.jsonl"]\n'
    study.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=r"subfolder|variant"):
        Study.load(study)


def test_studies_without_parts_are_as_they_were(tmp_path: Path) -> None:
    """Their fingerprint holds nothing of keys that came later."""
    (tmp_path / "p.jsonl").write_text('{"id": "a", "text": "x"}', encoding="utf-8")
    prints = []
    for more in ("", 'subfolder = "a"', 'variant = "b"'):
        text = f'name = "s"\n[models.m]\nhub = "lab/model"\n{more}\n[prompts]\nfiles = ["p.jsonl"]\n'
        (tmp_path / "study.toml").write_text(text, encoding="utf-8")
        prints.append(Study.load(tmp_path / "study.toml").fingerprint())
    assert len(set(prints)) == 3
