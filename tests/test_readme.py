"""What the README says can be run is there, and what it quotes is what was measured."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import precompute
from engine.study import Study

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+)(?:\s+[a-z]+)*:", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"demo", "test", "bench"} <= named
    assert named <= targets | {"test"}


def test_commands_are_understood() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "precompute.py" in line]
    assert len(commands) >= 4
    for line in commands:
        arguments = line.split("#")[0].split("precompute.py", 1)[1].split()
        assert precompute.parser().parse_args(arguments).study.suffix == ".toml"


def test_the_example_study_is_valid() -> None:
    (text,) = blocks("toml")
    study = Study.from_dict(tomllib.loads(text), ROOT)
    assert list(study.models) == ["base", "tuned"]


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
