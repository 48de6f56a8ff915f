"""A study at a URL, from precompute to the page: the numbers of a local folder, and no folder named "s3:"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3_server
from opened_pages import open_page
from tiny_study import write_study

import patchbay as pb
import precompute
from app.build import build as build_module
from app.frame.opened import open_at
from app.frame.running import find, runs_of
from app.live.run import LiveRunner, run_live
from app.workers.asked import Workers
from engine.errors import JobError, StoreError
from engine.patching.spec import Condition
from engine.study.study import Study
from store.places import lease
from store.reader import Store
from store.runs import RunLog

s3_server.skip_without()
ASKED = Condition(target="tuned", source="base", component="attn_out", layer=0, position="decision")


@pytest.fixture(scope="module")
def door() -> Iterator[s3_server.Door]:
    with s3_server.serving() as door:
        yield door


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), pairs=8, positions=["decision"])


@pytest.fixture(scope="module")
def local(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "store"
    assert precompute.main([str(study), "--store", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def made(study: Path, door: s3_server.Door) -> str:
    """The study's store at a URL, computed there."""
    url = f"s3://{s3_server.bucket()}/tiny"
    assert precompute.main([str(study), "--store", url]) == 0
    return url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_times(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name != "manifest.json"}


def test_precompute_writes_the_local_bytes(made: str, local: Path) -> None:
    found = s3_server.objects(made)
    assert without_times(found) == without_times(s3_server.files(local))
    told, own = (json.loads(data["manifest.json"]) for data in (found, s3_server.files(local)))
    assert {k: told[k] for k in ("ledger", "plan", "study", "state")} == {
        k: own[k] for k in ("ledger", "plan", "study", "state")
    }


def test_verify_and_going_on_find_all_as_it_was(
    made: str, study: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precompute.main([str(study), "--store", made, "--verify"]) == 0
    before = s3_server.objects(made)
    assert precompute.main([str(study), "--store", made]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert s3_server.objects(made) == before
    assert list(here.iterdir()) == []


@pytest.mark.fault
def test_a_run_that_stops_half_way_is_gone_on_with(
    door: s3_server.Door, study: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, write = f"s3://{s3_server.bucket()}/tiny", build_module.capture_into
    units = []

    def stops(*given: object) -> None:
        units.append(given[3])
        if len(units) == 2:
            raise KeyboardInterrupt
        write(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "capture_into", stops)
        assert precompute.main([str(study), "--store", url]) == 130
    assert not Store(url).complete
    assert ".writer.lock" not in s3_server.objects(url)
    assert precompute.main([str(study), "--store", url]) == 0
    assert without_times(s3_server.objects(url)) == without_times(s3_server.files(local))


@pytest.mark.fault
def test_what_is_refused_leaves_nothing(
    door: s3_server.Door, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{s3_server.bucket()}/tiny"

    def refused(*_: object) -> None:
        raise StoreError("No.", expected="yes", given="no")

    monkeypatch.setattr(build_module, "_check_values", refused)
    assert precompute.main([str(study), "--store", url]) == 1
    assert s3_server.objects(url) == {}


def test_what_cannot_be_written_is_refused_before_it_is_computed(
    door: s3_server.Door,
    made: str,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("app.build.prepare.Prepared.of", "app.live.run.compute", "app.live.headless.compute"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("computed first"))
    monkeypatch.setattr("app.imported.command.read_arrays", lambda *_: pytest.fail("read first"))
    monkeypatch.setattr(door, "answer", lambda method, path: 403 if method == "PUT" else None)
    url = f"s3://{made.removeprefix('s3://').split('/')[0]}/other"
    condition = json.dumps(ASKED.to_json())
    prompts = str(study.parent / "prompts.jsonl")
    for command in (
        [str(study), "--store", url],
        ["run", made, "--condition", condition],
        ["import", url, "--model", "a=a.npz", "--prompts", prompts],
    ):
        assert precompute.main(command) == 1
        assert "The object store refused" in capsys.readouterr().err
    with pytest.raises(StoreError, match="refused"):
        run_live(made, ASKED, "cpu")
    with pytest.raises(StoreError, match="refused"):
        LiveRunner("cpu").run(made, ASKED, lambda **_: None, lambda: False)


def test_several_workers_are_refused(
    door: s3_server.Door, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{s3_server.bucket()}/tiny"
    assert precompute.main([str(study), "--store", url, "--workers", "2"]) == 1
    assert "Several workers can't write to an object store" in capsys.readouterr().err
    assert s3_server.objects(url) == {}


def test_a_second_precompute_is_refused(
    made: str, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "PATIENCE", 2.0)
    with_hold = Store(made).source.lock()
    try:
        assert precompute.main([str(study), "--store", made]) == 1
    finally:
        with_hold.close()
    assert "Another writer is at work" in capsys.readouterr().err


def test_live_results_are_kept(made: str, local: Path, study: Path, here: Path) -> None:
    run_id, result = run_live(made, ASKED, "cpu")
    kept = RunLog(made).open(run_id)
    assert kept.summary == json.loads(json.dumps(result.summary))
    assert run_live(str(local), ASKED, "cpu")[0] == run_id
    assert kept.table.equals(RunLog(local).open(run_id).table)
    opened, other = open_at(made), ASKED.model_copy(update={"layer": 1})
    assert (find(opened, ASKED), find(opened, other)) == (run_id, None)
    outcome = LiveRunner("cpu").run(made, other, lambda **_: None, lambda: False)
    assert outcome.run_id in RunLog(made).ids()
    assert find(opened, other) == outcome.run_id
    assert {summary["run_id"] for _, summary in runs_of(opened)} == {run_id, outcome.run_id}
    third = json.dumps(ASKED.model_copy(update={"component": "mlp_out"}).to_json())
    assert precompute.main(["run", made, "--condition", third, "--root", str(study.parent)]) == 0
    assert len(RunLog(made).ids()) == 3
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("page", ["overview", "patching", "similarity", "runs"])
def test_pages_open(made: str, here: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    app = open_page(monkeypatch, made, page, timeout=300)
    assert not app.exception
    assert not [box.value for box in app.error]
    assert list(here.iterdir()) == []


def test_a_file_url_is_its_folder(
    local: Path, study: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{local}"
    assert (open_at(url).path, Store(url).path) == (str(local), local)
    assert runs_of(open_at(url)) == runs_of(open_at(str(local)))
    app = open_page(monkeypatch, url, "runs", timeout=300)
    assert not app.exception
    assert not [box.value for box in app.error]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JobError, match="Several workers need Ray"):
        build_module.build(Study.load(study), url, workers=Workers("ray", None, 2))
    assert list(here.iterdir()) == []


def test_a_report_is_written_here(made: str, here: Path) -> None:
    assert precompute.main(["report", made]) == 0
    assert (here / "tiny-report" / "report.html").stat().st_size > 10_000
    assert [path.name for path in here.iterdir()] == ["tiny-report"]


def test_activations_from_elsewhere_go_to_a_url(door: s3_server.Door, here: Path) -> None:
    url = f"s3://{s3_server.bucket()}/mine"
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    rows = [{"text": f"prompt {number}"} for number in range(4)]
    store = pb.from_arrays(url, {"base": {"resid_post.0": values, "resid_pre.0": values}}, rows)
    np.testing.assert_array_equal(store.activations("base", "resid_post", 0), values)
    local = pb.from_arrays(here / "mine", {"base": {"resid_post.0": values, "resid_pre.0": values}}, rows)
    assert local.complete
    assert without_times(s3_server.objects(url)) == without_times(s3_server.files(here / "mine"))
    assert [path.name for path in here.iterdir()] == ["mine"]
