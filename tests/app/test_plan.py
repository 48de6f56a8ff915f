"""--plan against what precompute then writes, what it knows of adapters from their headers, and its rates."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_study import save_model, write_study

from app.build import plan_times
from app.build.build import build
from app.build.plan_bytes import store_bytes
from app.build.plan_changes import Change, changes
from app.build.prepare import Prepared, describe_plan
from engine.errors import StoreError
from engine.models.loading import load
from engine.passes import cost as plan_module
from engine.passes.cost import linear_rate
from engine.study.study import Study

SUBSPACES = """
[subspaces]
positive = ["You are kind."]
negative = ["You are strict."]
fit = 6
evaluate = 4
"""
LARGER = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_adapter(folder: Path, base: Path, **options: object) -> Path:
    model = load(Study.load(base.parent / "study.toml").models["base"], "base").model
    config = LoraConfig(**({"r": 2, "target_modules": ["o_proj"], "init_lora_weights": False} | options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of a base, an adapter of rank 2 on block 1 and another model of the same tensors."""
    for seed, name in enumerate(("base", "tuned")):
        save_model(tmp_path / name, seed=seed, **LARGER)
    write_study(tmp_path, pairs=8, positions=["decision", "mean"], extra=SUBSPACES)
    write_adapter(tmp_path / "adapter", tmp_path / "base", layers_to_transform=[1])
    return tmp_path


def only(folder: Path, second: str) -> Study:
    text = (
        (folder / "study.toml").read_text(encoding="utf-8").replace('[models.tuned]\npath = "tuned"', second)
    )
    (folder / "other.toml").write_text(text, encoding="utf-8")
    return Study.load(folder / "other.toml")


@pytest.mark.parametrize("kind", ["adapter", "full", "without scores"])
def test_planned_bytes_are_within_a_fifth_of_what_is_written(folder: Path, kind: str) -> None:
    adapter = '[models.tuned]\npath = "base"\nadapter = "adapter"'
    study = only(
        folder, adapter if kind == "adapter" else '[models.tuned]\npath = "tuned"\ndtype = "float32"'
    )
    if kind == "without scores":
        study = study.model_copy(update={"subspaces": None})
    planned = store_bytes(Prepared.of(study))
    build(study, folder / "store", quiet=True)
    real = written(folder / "store")
    assert real / 1.2 < sum(planned.values()) < 1.2 * real, planned


def test_an_adapters_header_says_what_it_changes(folder: Path) -> None:
    study = only(folder, '[models.tuned]\npath = "base"\nadapter = "adapter"')
    prepared = Prepared.of(study)
    names = prepared.names
    o_proj = "model.layers.1.self_attn.o_proj.weight"
    assert changes(study, names)["tuned"] == Change({o_proj: 2}, frozenset())

    write_adapter(folder / "adapter", folder / "base", use_dora=True, modules_to_save=["model.norm"])
    found = changes(study, names)["tuned"]
    assert found.ranks == {}
    blocks = {f"model.layers.{block}.self_attn.o_proj.weight" for block in range(3)}
    assert found.dense == blocks | {"model.norm.weight"}

    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"nothing")
    every = frozenset(name for name, _ in prepared.shapes["tuned"].model.named_parameters())
    assert changes(study, names)["tuned"].dense == every
    assert changes(only(folder, '[models.tuned]\npath = "tuned"'), names)["tuned"].dense == every
    copy = changes(only(folder, '[models.tuned]\npath = "base"'), names)["tuned"]
    assert copy == Change({}, frozenset())


def test_every_part_of_the_time_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = only(folder, '[models.tuned]\npath = "tuned"')
    prepared = Prepared.of(study)
    monkeypatch.setattr(plan_times, "linear_rate", lambda *_: 1e9)
    monkeypatch.setattr(plan_module, "linear_rate", lambda *_: 1e9)
    text = describe_plan(prepared)
    for part in ("start", "loading", "capture", "weights", "self-checks", "subspace scores", "Grams"):
        assert f"{part} " in text.partition("time: about")[2].splitlines()[0]
    fast = plan_times.seconds(prepared, prepared.costs())
    monkeypatch.setattr(plan_times, "linear_rate", lambda *_: 1e6)
    monkeypatch.setattr(plan_module, "linear_rate", lambda *_: 1e6)
    slow = plan_times.seconds(prepared, prepared.costs())
    for part in ("capture", "self-checks", "subspace scores"):
        assert slow[part] > fast[part], part
    assert slow["start"] == fast["start"]


def test_a_rate_is_measured_once_and_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int]] = []

    def timed(_device: torch.device, _dtype: torch.dtype, rows: int, size: int) -> float:
        done.append((rows, size))
        now[0] += 2.0 * rows * size**2 / 1e9
        return 2.0 * rows * size**2 / 1e9

    now = [0.0]
    monkeypatch.setattr(plan_module, "_linear_seconds", timed)
    monkeypatch.setattr(plan_module.time, "perf_counter", lambda: now[0])
    linear_rate.cache_clear()
    cpu = torch.device("cpu")
    assert linear_rate(cpu, torch.bfloat16, 4096, 512) == pytest.approx(1e9)
    assert now[0] < 0.5, "1 GFLOP/s: a square product of 1024 would take 2 s"
    count = len(done)
    linear_rate(cpu, torch.bfloat16, 4096, 512)
    assert len(done) == count
    linear_rate.cache_clear()


def test_the_measured_rate_is_one() -> None:
    linear_rate.cache_clear()
    assert 1e6 < linear_rate(torch.device("cpu"), torch.float32, 64) < 1e15


def test_without_prompts_there_is_no_plan(folder: Path) -> None:
    prepared = Prepared.of(only(folder, '[models.tuned]\npath = "tuned"'))
    empty = Prepared(**(prepared.__dict__ | {"table": prepared.table[:0]}))
    with pytest.raises(StoreError, match="needs prompts"):
        describe_plan(empty)


def test_constants_of_calls_go_by_the_machines_pace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = Prepared.of(only(folder, '[models.tuned]\npath = "tuned"'))
    monkeypatch.setattr(plan_times, "linear_rate", lambda *_: 1e15)
    monkeypatch.setattr(plan_module, "linear_rate", lambda *_: 1e15)
    told = []
    for pace in (1.0, 2.0):
        monkeypatch.setattr(plan_times, "pace", lambda: pace)  # noqa: B023 - called within this turn
        monkeypatch.setattr(plan_module, "pace", lambda: pace)  # noqa: B023
        told.append(plan_times.seconds(prepared, prepared.costs()))
    assert told[1]["start"] == 2 * told[0]["start"]
    for part in ("loading", "capture", "self-checks", "subspace scores"):
        assert told[0][part] < told[1][part] < 2 * told[0][part] + 1e-9, part


def test_the_pace_is_the_best_of_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([9.0, 4 * plan_module.SMALL_SECONDS, *[7.0] * 20])
    monkeypatch.setattr(plan_module, "_small_seconds", lambda: next(tries))
    plan_module.pace.cache_clear()
    assert plan_module.pace() == pytest.approx(4)
    plan_module.pace.cache_clear()
