"""Subspace scores on a store: run when it is finished, again without a model, own code only if allowed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_study import save_model, write_study

import precompute
from app.build.build import build
from app.frame import opened as resources
from app.live import headless
from app.live.own_code import own_file, with_own_code
from app.live.run import LiveRunner, compute, run_live
from app.live.worker import Worker
from engine.behaviour.spec import Behaviour
from engine.errors import StudyError
from engine.lab.repeat import Repeat
from engine.study.study import Study
from engine.subspaces.spec import DEFINITIONS, SubspaceScores
from engine.subspaces.tables import scores_of
from store.reader import Store
from store.runs import Run, RunLog

OWN = """\
import numpy as np
from pathlib import Path
from engine.subspaces.numbers import candidate

Path(__file__).with_name("marker").open("a").close()

@candidate(name="first_axes", family="own", axis_kind="mixed", source="none", needs=(),
           definition="the first k coordinate axes", nested=True)
def first_axes(inputs, layer, k):
    return np.eye(inputs.d)[:, :k]
"""
SECTION = """
[subspaces]
positive = "You agree."
negative = "You check."
fit = 7
evaluate = 5
candidates = "own.py"
"""
SMALL: dict[str, Any] = {"ks": (1, 4), "cleans": (0, 2), "broad": 8}
PAGE = Path(__file__).parents[2] / "docs" / "methods" / "subspace_scores.md"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for seed, name in enumerate(("base", "tuned", "other")):
        save_model(folder / name, seed=seed)
    (folder / "own.py").write_text(OWN)
    file = write_study(folder, pairs=12, positions=["decision"], components=["resid"], extra=SECTION)
    file.write_text(file.read_text().replace("[prompts]", '[models.other]\npath = "other"\n[prompts]'))
    return file


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny"
    build(Study.load(study), path, quiet=True)
    return path


@pytest.fixture
def store(finished: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy far from the study, whose folder is declared."""
    monkeypatch.setenv("PATCHBAY_ROOTS", str(study.parent))
    return Path(shutil.copytree(finished, tmp_path / "store"))


@pytest.fixture
def marker(study: Path) -> Path:
    """A file that is there once own code has run."""
    found = study.parent / "marker"
    found.unlink(missing_ok=True)
    return found


def only_run(store: Path) -> Run:
    (run_id,) = RunLog(store).ids()
    return RunLog(store).open(run_id)


def test_a_finished_store_has_one_run_of_built_in_candidates(store: Path, marker: Path) -> None:
    run = only_run(store)
    assert SubspaceScores.from_json(run.condition) == SubspaceScores(definitions=DEFINITIONS)
    assert run.summary["notes"][0] == (
        "The study names candidates in own.py; they were not run; add --allow-code."
    )
    assert run.summary["deltas"] == ["tuned", "other"]
    scores = scores_of(run.summary, run.tables, "tuned", 4)
    assert "first_axes" not in scores.names
    assert np.isfinite(scores.mean("r_combined")).any()
    assert not marker.exists()


def test_the_same_command_goes_on_from_there(
    study: Path, store: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(study), "--store", str(store)]
    assert precompute.main(command) == 0
    assert "stored already" in capsys.readouterr().out
    assert not marker.exists()
    assert precompute.main([*command, "--allow-code"]) == 0
    assert "with own candidates: run" in capsys.readouterr().out
    assert marker.exists()
    assert len(RunLog(store).ids()) == 2
    own = own_file(Store(store))
    assert own is not None
    asked = SubspaceScores(code=own.digest or "", definitions=DEFINITIONS)
    run_id = RunLog(store).find(asked.content_hash(Store(store).fingerprint))
    assert run_id is not None
    run = RunLog(store).open(run_id)
    facts = {"file": "own.py", "sha256": own.digest, "ran": True, "names": ["first_axes"], "problem": ""}
    assert run.summary["code"] == facts
    assert "first_axes" in scores_of(run.summary, run.tables, "tuned", 4).names


def test_a_run_needs_no_model(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "store"))
    shutil.rmtree(path / "runs")
    loaded: list[Any] = []

    class NoModels:
        def __getattr__(self, name: str) -> Any:
            loaded.append(name)
            raise AssertionError(name)

    models: Any = NoModels()
    result = compute(Store(path), SubspaceScores(**SMALL), models, lambda **_: None, lambda: False)
    assert not loaded
    assert result.summary["counts"]["evaluate"] == 5


def test_commands(store: Path, study: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    condition = json.dumps({"job": "subspace_scores"} | SMALL)
    assert precompute.main(["run", str(store), "--condition", condition]) == 0
    said = capsys.readouterr().out
    assert "they were not run; add --allow-code" in said
    assert not marker.exists()
    own = own_file(Store(store), allowed=True)
    assert own is not None
    asked = with_own_code(SubspaceScores(**SMALL), Store(store), allowed=True)
    assert asked.code == own.digest
    command = shlex.split(headless.command(str(store), [asked]))
    assert command[-1] == "--allow-code"
    assert precompute.main(command[2:-1]) == 1  # without it
    assert "isn't run by itself" in capsys.readouterr().err
    assert not marker.exists()
    assert precompute.main(command[2:]) == 0
    assert marker.exists()
    assert "stored already" not in capsys.readouterr().out
    assert precompute.main(["run", str(store), "--condition", condition, "--allow-code"]) == 0
    assert "stored already" in capsys.readouterr().out  # the flag alone asks for the same
    parts = json.dumps([{"job": "subspace_scores", "deltas": ["tuned"], "ks": [k]} for k in (1, 2, 3)])
    assert precompute.main(["run", str(store), "--condition", parts, "--part", "2/3"]) == 0
    assert "k = 2: run" in capsys.readouterr().out
    assert "--allow-code" not in headless.command(str(store), [SubspaceScores()])
    assert headless.command(str(store), [Repeat(of=asked.to_json())]).endswith(" --allow-code")


def test_other_experiments_and_stores_without_own_code_are_left_alone(store: Path) -> None:
    other = Behaviour.from_json({"job": "behaviour", "model": "base"})
    assert with_own_code(other, Store(store), allowed=True) is other
    given = SubspaceScores(definitions=DEFINITIONS)
    assert with_own_code(given, Store(store), allowed=False) == given
    assert with_own_code(SubspaceScores(), Store(store), allowed=False) == given


def test_a_run_by_earlier_definitions_does_not_stand_for_one_by_todays(store: Path) -> None:
    before = SubspaceScores(**SMALL)
    assert "definitions" not in before.to_json()  # its hash is what it was
    now = with_own_code(before, Store(store), allowed=False)
    assert now.to_json() == before.to_json() | {"definitions": DEFINITIONS}
    assert now.content_hash("f") != before.content_hash("f")


def test_a_changed_file_is_refused(study: Path, store: Path, marker: Path) -> None:
    file = study.parent / "own.py"
    before = file.read_text()
    try:
        file.write_text(before + "\n# changed\n")
        with pytest.raises(StudyError, match="are not those that the study was made with"):
            run_live(str(store), SubspaceScores(**SMALL), allow_code=True)
        assert not marker.exists()
        run_live(str(store), SubspaceScores(**SMALL))  # the built-in ones need no file
    finally:
        file.write_text(before)


def test_the_worker_runs_own_code_only_if_it_was_started_so(store: Path, marker: Path) -> None:
    asked = with_own_code(SubspaceScores(**SMALL), Store(store), allowed=True)
    with pytest.raises(StudyError, match="isn't run by itself"):
        LiveRunner("cpu").run(str(store), asked, lambda **_: None, lambda: False)
    assert not marker.exists()
    with Worker(["cpu"], allow_code=True) as trusting:
        job = trusting.wait(trusting.submit(store, asked), 120)
        assert job.state == "done", job.error
        assert 0 < job.done <= job.total
    assert marker.exists()
    assert job.run_id is not None
    assert RunLog(store).open(job.run_id).summary["code"]["ran"]


def test_the_dashboard_allows_code_only_when_told() -> None:
    assert resources.code_allowed(["--store", "runs/demo", "--allow-code"])
    assert not resources.code_allowed(["--store", "runs/demo"])
    assert not resources.code_allowed(["--store", "--allow-code=no"][:1])


def test_the_notebook_lines_of_the_docs_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python title=\"notebook\"\n(.*?)```", PAGE.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code.replace('"runs/demo"', repr(str(store))), names)
    assert set(names["scores"]) == {"tuned", "other"}
    assert "joint score" in capsys.readouterr().out
