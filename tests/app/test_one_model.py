"""Precompute holds one model at a time, says how far it is, and leaves nothing of what it put aside."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import pytest
from tiny_study import write_study

from app.build import build as build_module
from app.build import subspaces as build_subspaces
from app.build import weights as build_weights
from app.build.build import build
from app.build.progress import Progress
from app.live import terminal
from engine.errors import StoreError
from engine.models.loading import LoadedModel, load
from engine.study.study import Study
from store.reader import Store

SUBSPACES = """
[subspaces]
positive = ["You are kind."]
negative = ["You are strict."]
fit = 4
evaluate = 3
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.load(write_study(tmp_path / "study", pairs=6, positions=["decision"], extra=SUBSPACES))


def test_no_model_is_loaded_while_another_is_there(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[weakref.ref[Any]] = []
    files: list[list[str]] = []

    def watched(spec: Any, name: str) -> LoadedModel:
        assert not [ref for ref in held if ref() is not None], f"{name} is loaded beside another model"
        files.append([path.name for path in (tmp_path / "store").glob(".tmp-*-weights")])
        lm = load(spec, name)
        held.append(weakref.ref(lm.model))
        return lm

    monkeypatch.setattr(build_module, "load", watched)
    monkeypatch.setattr(build_subspaces, "load", watched)
    store = build(study, tmp_path / "store")
    assert len(held) == 3
    assert list(map(len, files)) == [0, 1, 0], "the first model's weights, while the second is compared"
    assert not list((tmp_path / "store").glob(".tmp*"))
    assert [check["name"] for check in store.self_checks()].count("steering at α = 0 is a no-op") == 1

    told = capsys.readouterr().err
    for stage, steps in (
        ("base: loading", "1/1 models"),
        ("base: capture on cpu", "12/12 prompts"),
        ("base: weights", r"\d+/\d+ parts"),
        ("tuned: weight differences", r"(\d+)/\1 tensors"),
        ("tuned: self-checks", r"(\d+)/\1 steps"),
        ("Grams", r"(\d+)/\1 layers"),
        ("subspace scores: weights", r"(\d+)/\1 parts"),
        ("subspace scores: streams under no persona", "4/4 prompts"),
        ("subspace scores: label of tuned", "14/14 prompts"),
        ("subspace scores: self-checks", r"(\d+)/\1 prompts"),
    ):
        assert re.search(rf"^{re.escape(stage)}: {steps} in \d+:\d\d$", told, re.MULTILINE), stage


def test_weights_that_a_killed_run_put_aside_go_at_the_next(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(build_weights, "_write_deltas", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KilledError):
            build(study, tmp_path / "store", quiet=True)
    assert len(list((tmp_path / "store").glob(".tmp-*-weights"))) == 1
    build(study, tmp_path / "store", quiet=True)
    assert not list((tmp_path / "store").glob(".tmp*"))
    assert Store(tmp_path / "store").complete


def test_a_full_disk_is_told(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.weights.kept._write", full)
    with pytest.raises(StoreError, match=r"The disk is full: could not write .*-weights"):
        build(study, tmp_path / "store", quiet=True)
    assert not list((tmp_path / "store").glob(".tmp*"))


def test_a_log_has_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    lines = terminal.Lines("tuned: weights", 40, "part", done=10)
    for _ in range(3):
        now[0] += 4.0
        lines.update(5)
    lines.set_postfix_str("block 7")
    now[0] += 70.0
    lines.refresh()
    lines.refresh()
    lines.update(15)
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "tuned: weights: 10/40 parts",
        "tuned: weights: 25/40 parts, 0:12 gone, about 0:12 left",
        "tuned: weights: 25/40 parts, 1:22 gone, about 1:22 left (block 7)",
        "tuned: weights: 40/40 parts in 1:22 (block 7)",
    ]
    lines = terminal.Lines("loading", 1, "model")
    now[0] += 3700.0
    lines.refresh()
    assert capsys.readouterr().err.endswith("loading: 0/1 models, 1:01:40 gone, time left not known yet\n")


def test_a_long_step_is_told_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    monkeypatch.setattr("app.build.progress.BEAT_SECONDS", 0.01)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.02)
    with Progress().stage("one step", 1):
        time.sleep(0.3)
    told = capsys.readouterr().err.splitlines()
    assert len(told) > 3
    assert all(line.startswith("one step: 0/1 steps") for line in told)
    with Progress(quiet=True).stage("one step", 1), Progress().stage("nothing", 0):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
