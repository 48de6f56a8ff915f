"""A place that can't be written to is refused before anything is computed, whichever way it is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_study import write_study

import patchbay as pb
import precompute
from app.build.build import build
from app.imported.store import import_arrays
from app.live.run import LiveRunner, run_live
from engine.errors import StoreError
from engine.patching.spec import Condition
from engine.study.study import Study
from patchbay import cli
from store.maps import MapLog
from store.migrate import migrate
from store.runs import RunLog
from store.sources import to_write

UNWRITABLE = ("ftp://host/new", "ftp:/host/new", "s3:/bucket/new")
"""An unknown protocol, and URLs that went through `Path`."""
ASKED = Condition(target="tuned", source="base", component="attn_out", layer=0, position="decision")
ARRAYS = {"base": {"resid_pre.0": np.ones((4, 3), np.float32)}}


def _job(place: str) -> object:
    return LiveRunner("cpu").run(place, ASKED, lambda **_: None, lambda: False)


FUNCTIONS: dict[str, Callable[[str, Path], Any]] = {
    "build": lambda place, study: build(Study.load(study), Path(place)),
    "precompute": lambda place, study: pb.precompute(study, place),
    "import": lambda place, _: import_arrays(place, ARRAYS, pl.DataFrame()),
    "from arrays": lambda place, _: pb.from_arrays(place, ARRAYS, [{"text": str(i)} for i in range(4)]),
    "live run": lambda place, _: run_live(place, ASKED, "cpu"),
    "patch": lambda place, _: pb.patch(
        place, target="tuned", source="base", component="attn_out", layer=0, position="decision"
    ),
    "live job": lambda place, _: _job(place),
    "stored run": lambda place, _: RunLog(place).append({}, {}, pl.DataFrame({"a": [1]})),
    "map": lambda place, _: MapLog(place).save("one", {}, {"a": np.ones(2)}, {}),
    "migrate": lambda place, _: migrate(place),
}
CONDITION = '{"job": "patch"}'
COMMANDS: dict[str, Callable[[str, Path], int]] = {
    "precompute": lambda place, study: precompute.main([str(study), "--store", place]),
    "verify": lambda place, study: precompute.main([str(study), "--store", place, "--verify"]),
    "run": lambda place, _: precompute.main(["run", place, "--condition", "[]"]),
    "import": lambda place, study: precompute.main(
        ["import", place, "--model", "a=a.npz", "--prompts", str(study.parent / "prompts.jsonl")]
    ),
    "migrate": lambda place, _: precompute.main(["migrate", place]),
    "report": lambda place, _: precompute.main(["report", place]),
    "demo": lambda place, _: cli.main(["demo", "--store", place]),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("places"), pairs=3, positions=["decision"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the program runs in; nothing may be computed."""
    monkeypatch.chdir(tmp_path)
    for name in ("app.build.build.load", "app.build.prepare.Prepared.of", "app.live.run.compute"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("computed first"))
    return tmp_path


@pytest.mark.parametrize("place", UNWRITABLE)
@pytest.mark.parametrize("entry", FUNCTIONS)
def test_functions_refuse_before_they_compute(entry: str, place: str, study: Path, here: Path) -> None:
    with pytest.raises(StoreError, match=r"(?s)(?=.*Given).*:/"):
        FUNCTIONS[entry](place, study)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("place", UNWRITABLE)
@pytest.mark.parametrize("entry", COMMANDS)
def test_commands_refuse_before_they_compute(
    entry: str, place: str, study: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMANDS[entry](place, study) == 1
    said = capsys.readouterr().err
    assert "StoreError" in said
    assert ":/" in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("out", ["s3://bucket/report", "s3:/bucket/report", "ftp://host/report.html"])
def test_a_report_is_written_to_a_folder(out: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert precompute.main(["report", "nowhere", "--out", out]) == 1
    assert "A report is written to a local folder" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("path", ["runs/demo", "/tmp/x", "a:b/c", "file:///tmp/x", "C:/x"])
def test_a_folder_is_not_taken_for_a_url(path: str) -> None:
    assert to_write(path) == Path(path.removeprefix("file://"))
