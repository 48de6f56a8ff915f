"""What the README says can be run is there, and what it quotes is what was measured."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from live_study import make_store

import precompute
from app.analyses import ANALYSES
from engine.errors import PatchError
from engine.study.study import Study
from store.reader import Store
from store.runs import RunLog

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_its_table_of_pages_is_the_list_of_analyses() -> None:
    table = README[README.index("| page | answers |") :].split("\n\n")[0].splitlines()[2:]
    told = [f"| {one.title} | {one.answers} | {one.null} |" for one in ANALYSES if one.section]
    assert [line for line in table if line[:8] not in ("| Report", "| Runs |")] == told


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+)(?:\s+[a-z-]+)*:", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"demo", "test", "bench"} <= named
    assert named <= targets | {"test"}


def test_every_pin_has_its_hash() -> None:
    """`.ci/hashes.py` was run after the last change of the constraints."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    hashed = [
        line.split(" --hash=sha256:") for line in (ROOT / ".ci/hashes.txt").read_text().splitlines()[1:]
    ]
    assert [pin for pin, _ in hashed] == [pin for pin in pins if not pin.startswith(("#", "torch=="))]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for _, digest in hashed)


def test_commands_are_understood() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "precompute.py" in line]
    assert len(commands) >= 4
    parsers = {name: precompute.COMMANDS[name].parser() for name in precompute.AFTER_THE_STORE}
    for line in commands:
        arguments = line.split("#")[0].split("precompute.py", 1)[1].split()
        if arguments[0] in parsers:
            parsers[arguments[0]].parse_args(arguments[1:])
        else:
            assert precompute.parser().parse_args(arguments).study.suffix == ".toml"


def test_the_notebook_call_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's lines, on a store of four blocks: they ask for block 4, which is not there."""
    make_store(tmp_path, "float32")
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "store-float32").rename(tmp_path / "runs/demo")
    with pytest.raises(PatchError, match=r"Layer 4 is out of range for tuned"):
        exec(code, {})
    scope: dict[str, Any] = {}
    exec(code.replace("layer=4", "layer=2"), scope)
    assert scope["result"].summary["best"]["chosen_on"] == "train"
    assert RunLog("runs/demo").find(scope["asked"].content_hash(Store("runs/demo").fingerprint))


def test_the_example_study_is_valid() -> None:
    text, further = blocks("toml")
    study = Study.from_dict(tomllib.loads(text), ROOT)
    assert list(study.models) == ["base", "tuned"]
    third = '[models.critical]\nhub = "Qwen/Qwen2.5-0.5B"\nadapter = "someone/critical"\n'
    longer = Study.from_dict(tomllib.loads(text + third + further), ROOT)
    assert set(longer.contrasts) == {"agreeable"}
    assert longer.subspaces is not None


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.-]+)\)|`(benchmarks/\w+\.py)`", README))))
def test_named_files_exist(path: tuple[str, str]) -> None:
    assert (ROOT / (path[0] or path[1])).exists()


def test_the_demo_is_as_good_as_it_says() -> None:
    base = json.loads((ROOT / "demo/metrics.json").read_text(encoding="utf-8"))["base"]["held_out"]
    said = re.search(r"\(([\d.]+) % of ([\d,]+) held-out prompts exactly right, (\d+) %", README)
    assert said is not None
    assert float(said[1]) == round(100 * base["accuracy_all"], 1)
    assert int(said[2].replace(",", "")) == base["n"]
    assert float(said[3]) == 100 * min(base["fidelity"].values())
