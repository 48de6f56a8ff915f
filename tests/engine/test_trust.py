"""A model's own code runs only when the process allows it and the study pins it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import tiny
from tiny_tokenizers import chatml

import precompute
from engine.errors import StudyError
from engine.models import trust
from engine.models.loading import load
from engine.models.skeleton import skeleton
from engine.models.sources import load_tokenizer
from engine.study.study import ModelSpec, Study


@pytest.fixture(autouse=True)
def forbidden() -> Iterator[None]:
    trust.allow_code(False)  # a command line that another test ran in this process may have allowed it
    yield
    trust.allow_code(False)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A sound model whose config asks for code of its own, which leaves a mark."""
    folder = tmp_path / "model"
    tokenizer = chatml()
    tiny("qwen3", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (folder / "own.py").write_text(
        mark + "from transformers import Qwen3Config, Qwen3ForCausalLM\n\n\nclass OwnConfig(Qwen3Config):\n"
        "    model_type = 'qwen3'\n\n\nclass OwnModel(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("begin", [skeleton, load_tokenizer, lambda spec: load(spec, "m")])
def test_no_file_gives_the_permission(hostile: Path, begin: object) -> None:
    assert callable(begin)
    pinned = ModelSpec(path=hostile, trust_remote_code=True, code_sha256=trust.code_hash(hostile))
    with pytest.raises(StudyError, match=r"isn't done by itself.*--allow-code"):
        begin(pinned)
    assert not (hostile.parent / "ran").exists()


@pytest.mark.parametrize("begin", [skeleton, lambda spec: load(spec, "m")])
def test_code_that_is_not_pinned_does_not_run(hostile: Path, begin: object) -> None:
    assert callable(begin)
    trust.allow_code(True)
    found = trust.code_hash(hostile)
    with pytest.raises(StudyError, match=re.escape(f'code_sha256 = "{found}"')):
        begin(ModelSpec(path=hostile, trust_remote_code=True))
    (hostile / "own.py").write_text((hostile / "own.py").read_text() + "\n# changed\n")
    with pytest.raises(StudyError, match="not those that the study pins"):
        begin(ModelSpec(path=hostile, trust_remote_code=True, code_sha256=found))
    assert not (hostile.parent / "ran").exists()


def test_allowed_and_pinned_code_runs(hostile: Path) -> None:
    """The positive control: what the other tests find absent is what would have been there."""
    trust.allow_code(True)
    skeleton(ModelSpec(path=hostile, trust_remote_code=True, code_sha256=trust.code_hash(hostile)))
    assert (hostile.parent / "ran").exists()


def test_a_hub_model_is_pinned_by_its_commit() -> None:
    trust.allow_code(True)
    for revision in (None, "main", "v1.0"):
        with pytest.raises(StudyError, match="a full commit hash"):
            trust.check_remote_code(ModelSpec(hub="a/b", revision=revision, trust_remote_code=True))
    trust.check_remote_code(ModelSpec(hub="a/b", revision="0" * 40, trust_remote_code=True))


def test_the_hash_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    first = trust.code_hash(tmp_path)
    (tmp_path / "weights.bin").write_text("y")
    assert trust.code_hash(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert trust.code_hash(tmp_path) != first


def test_a_pin_needs_the_code_it_pins(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="needs 'trust_remote_code = true'"):
        Study.from_dict(
            {
                "name": "s",
                "models": {"m": {"hub": "a/b", "code_sha256": "0"}},
                "prompts": {"files": ["p.csv"]},
            },
            tmp_path,
        )


def test_a_plan_on_the_command_line_runs_nothing(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = hostile.parent / "study.toml"
    pin = trust.code_hash(hostile)
    study.write_text(
        f'name = "s"\n[models.m]\npath = "model"\ntrust_remote_code = true\ncode_sha256 = "{pin}"\n'
        '[prompts]\nfiles = ["p.jsonl"]\n'
    )
    rows = [f'{{"id": "{name}", "text": "What is the capital of France?"}}\n' for name in "ab"]
    (hostile.parent / "p.jsonl").write_text("".join(rows))
    command = [str(study), "--plan"]
    assert precompute.main(command) == 1
    assert "--allow-code" in capsys.readouterr().err
    assert not (hostile.parent / "ran").exists()
    assert precompute.main([*command, "--allow-code"]) == 0, capsys.readouterr().err
    assert (hostile.parent / "ran").exists()
