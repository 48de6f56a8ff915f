"""Weights and adapters of strangers: pickles never run, and whatever else is in them is refused in words."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_study import save_model

from engine.errors import ModelError
from engine.models.loading import load
from engine.models.weight_diff import read_weight_diff
from engine.study.study import ModelSpec


class Runs:
    """Pickled, it makes a file when it is read back without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def pickles(path: Path, mark: Path) -> None:
    """The same payload as a plain pickle and in torch's own container."""
    path.write_bytes(pickle.dumps(Runs(mark)))
    torch.save({"a": Runs(mark)}, path.with_suffix(".container"))


@pytest.mark.parametrize("container", [False, True])
def test_a_pickle_in_a_model_folder_does_not_run(model: Path, container: bool) -> None:
    (model / "model.safetensors").unlink()
    mark = model / "ran"
    pickles(model / "pytorch_model.bin", mark)
    made = (model / "pytorch_model.container").rename(model.parent / "container")
    if container:
        made.replace(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"could not be loaded.*Next:"):
        load(ModelSpec(path=model, device="cpu"), "m")
    assert not mark.exists()


@pytest.mark.parametrize("container", [False, True])
def test_a_pickle_as_weight_difference_does_not_run(tmp_path: Path, container: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "diff.pt"
    pickles(path, mark)
    if container:
        path.with_suffix(".container").replace(path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_weight_diff(path)
    assert not mark.exists()


DIFFS = {
    "empty.safetensors": b"",
    "huge.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "lists.safetensors": struct.pack("<Q", 2) + b"[]",
    "empty.pt": b"",
    "garbage.pt": b"garbage",
    "zip.pt": b"PK\x03\x04" + b"\0" * 100,
    "diff.npz": b"",
}


@pytest.mark.parametrize("name", DIFFS)
def test_a_damaged_weight_difference_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DIFFS[name])
    with pytest.raises(ModelError, match=r"weight diff.*Expected:.*Given:.*Next:"):
        read_weight_diff(tmp_path / name)


def settings(**changes: object) -> bytes:
    plain = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    return json.dumps(plain | changes).encode()


ADAPTERS: dict[str, Callable[[Path], object]] = {
    "no settings": lambda at: (at / "adapter_config.json").write_bytes(b""),
    "a list": lambda at: (at / "adapter_config.json").write_bytes(b"[]"),
    "a library": lambda at: (at / "adapter_config.json").write_bytes(
        settings(auto_mapping={"parent_library": "antigravity", "base_model_class": "x"}, task_type=None)
    ),
    "a rank of 1e12": lambda at: (at / "adapter_config.json").write_bytes(settings(r=10**12)),
    "a rank as text": lambda at: (at / "adapter_config.json").write_bytes(settings(r="x")),
    "a negative rank": lambda at: (at / "adapter_config.json").write_bytes(settings(r=-1)),
    "an unknown kind": lambda at: (at / "adapter_config.json").write_bytes(settings(peft_type="EVIL")),
    "no weights": lambda at: (at / "adapter_model.safetensors").unlink(),
    "a huge header": lambda at: (at / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60)),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused(model: Path, name: str) -> None:
    at = model.parent / "adapter"
    at.mkdir()
    (at / "adapter_config.json").write_bytes(settings())
    (at / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    ADAPTERS[name](at)
    with pytest.raises(ModelError, match=r"Expected:.*Given:.*Next:"):
        load(ModelSpec(path=model, adapter=at, device="cpu"), "m")


def test_tensors_that_a_config_claims_and_nobody_sent_are_not_made_up(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 900}))
    with pytest.raises(ModelError, match=r"Next:"):
        load(ModelSpec(path=model, device="cpu"), "m")
