"""`precompute.py run`: experiments without a browser, from JSON, kept in the store."""

from __future__ import annotations

import io
import json
import re
import shlex
import time
from pathlib import Path

import polars as pl
import pytest
from live_study import CHANGED, make_store

import precompute
from app.live.headless import command, part_of, read_experiments
from app.live.terminal import Share
from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult
from engine.patching.spec import Condition
from store.runs import RunLog


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("run"), "float32")


def literal(layer: int, **changes: object) -> Condition:
    plain = {"target": "tuned", "source": "base", "component": "resid_post", "kind": "literal", "n_boot": 100}
    return Condition.model_validate({**plain, "layer": layer, **changes})


def test_a_file_of_experiments_fills_a_store(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored results are not run again; the one that cannot be run is named and the others run."""
    wanted = [literal(CHANGED), literal(CHANGED - 1), literal(99)]
    file = tmp_path / "experiments.json"
    file.write_text(json.dumps([experiment.to_json() for experiment in wanted]))
    assert precompute.main(["run", str(store), "--condition", str(file), "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert told.out.count(": run ") == 2
    assert "Layer 99 is out of range for tuned. Expected: 0 to 3" in told.err
    listed = RunLog(store).list().sort("layer")
    assert listed["layer"].to_list() == [CHANGED - 1, CHANGED]
    curves = [json.loads(text)["curve"][0]["kl"] for text in listed["summary"]]
    assert abs(curves[0]) <= 1e-6
    assert curves[1] > 1e-4
    again = ["run", str(store), "--condition", json.dumps(literal(CHANGED).to_json()), "--device", "cpu"]
    assert precompute.main(again) == 0
    assert "stored already, run" in capsys.readouterr().out
    assert RunLog(store).list().height == 2


def test_what_is_said_is_kept_in_a_file(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.log"
    wanted = ["run", str(store), "--condition", json.dumps(literal(99).to_json()), "--log", str(file)]
    assert precompute.main([*wanted, "--device", "cpu"]) == 1
    capsys.readouterr()
    assert precompute.main(["run", str(tmp_path / "no-store"), *wanted[2:]]) == 1
    lines = file.read_text(encoding="utf-8").splitlines()
    assert any("Layer 99 is out of range for tuned" in line for line in lines)
    assert any("StoreError: " in line for line in lines)
    stamped = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)]
    assert len(stamped) >= 2
    with pytest.raises(SystemExit, match="cannot be written"):
        precompute.main([*wanted[:-1], str(tmp_path / "absent" / "run.log")])


def test_an_unforeseen_error_does_not_keep_the_others_from_running(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compute(_store: object, experiment: Condition, *_rest: object) -> ExperimentResult:
        if experiment.layer == 0:
            raise ValueError("a bug")
        return ExperimentResult({}, {"table": pl.DataFrame({"kl": [0.0]})})

    monkeypatch.setattr("app.live.headless.compute", compute)
    wanted = json.dumps([literal(layer, seed=7).to_json() for layer in (0, 1)])
    assert precompute.main(["run", str(store), "--condition", wanted]) == 1
    told = capsys.readouterr()
    assert told.out.count(": run ") == 1
    assert "ValueError: a bug" in told.err


def test_the_command_of_a_page_is_read_back(tmp_path: Path) -> None:
    wanted = [literal(1, where={"language": "zh"}), literal(2, position="decision")]
    words = shlex.split(command("runs/my store", wanted))
    assert words[:4] == ["python", "precompute.py", "run", "runs/my store"]
    options = precompute.run_parser().parse_args(words[3:])
    assert read_experiments(options.condition) == wanted
    twice = [json.dumps(wanted[0].to_json()), json.dumps([e.to_json() for e in wanted])]
    assert read_experiments(twice) == wanted


def test_parts_share_the_work_without_overlap() -> None:
    wanted = [literal(layer) for layer in range(7)]
    parts = [part_of(wanted, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(e.layer for part in parts for e in part if isinstance(e, Condition)) == list(range(7))
    assert part_of(wanted, None) == wanted
    for nonsense in ("0/3", "4/3", "x", "1/", "-1/3"):
        with pytest.raises(PatchError, match="There is no such part"):
            part_of(wanted, nonsense)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere.json", "cannot be read. Expected: JSON, or a file of JSON"),
        ("{broken", "cannot be read"),
        ("[1, 2]", "An experiment is a JSON object"),
        ('{"job": "dance"}', "no such kind of experiment. Expected: ard"),
        ('{"target": "tuned", "source": "base", "component": "resid_post", "layer": -1}', "layer"),
    ],
)
def test_what_cannot_be_read_is_said(
    text: str, said: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precompute.main(["run", str(store), "--condition", text]) == 1
    assert said in capsys.readouterr().err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_of_a_job_shows_its_share_and_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that count anew, and smaller totals, hold it; what is drawn is percent, not a count of runs."""
    screen = _Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Share("job", quiet=False) as share:
        for done, total in ((0, 4), (3, 4), (1, 4), (1, 2), (4, 4)):
            share(done=done, total=total, message=f"step {done}")
            time.sleep(0.11)
    drawn = [int(one) for one in re.findall(r"(\d+) %", screen.getvalue())]
    assert drawn == sorted(drawn)
    assert {0, 75, 100} <= set(drawn)
    assert "step 3" in screen.getvalue()
    assert "run/s" not in screen.getvalue()


def test_a_log_gets_few_lines_of_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("app.live.terminal.time.monotonic", lambda: float(next(clock)))
    for quiet in (False, True):
        with Share("job", quiet) as share:
            for done in range(100):
                share(done=done, total=100, message="busy")
        told = capsys.readouterr().err.splitlines()
        assert len(told) == (0 if quiet else 3)
        assert all(re.fullmatch(r"job: \d+% after \d+ s\. busy", line) for line in told)
