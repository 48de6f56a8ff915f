"""Live results: found again by content, safe against torn writes and against two writers at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest
from synthetic_store import write_all

from engine.errors import StoreError
from store import files
from store.manifest import verify
from store.runs import RunLog, condition_hash
from store.sources import LocalSource

TABLE = pl.DataFrame({"id": ["p0", "p1"], "kl": [0.25, None], "tokens": [["答", "a"], []]})
CONDITION = {"target": "tuned", "layer": 3, "heads": [1, 2], "alpha": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_all(tmp_path / "store")
    return tmp_path / "store"


def test_a_run_opens_as_it_was_kept(store: Path) -> None:
    log = RunLog(store)
    run_id = log.append(CONDITION, {"kl": 0.25, "bad": float("nan")}, TABLE, {"before": TABLE.head(1)})
    run = RunLog(store).open(run_id)
    assert run.table.equals(TABLE)
    assert run.tables["before"].equals(TABLE.head(1))
    assert (run.condition, run.summary) == (CONDITION, {"kl": 0.25, "bad": "nan"})
    assert run_id == condition_hash(CONDITION)[:16]
    assert verify(store) == []


def test_the_id_depends_on_content_alone(store: Path) -> None:
    reordered = dict(reversed(CONDITION.items()))
    log = RunLog(store)
    first = log.append(CONDITION, {"kl": 1.0}, TABLE)
    assert log.append(reordered, {"kl": 2.0}, TABLE.head(1)) == first
    assert log.open(first).summary == {"kl": 1.0}, "a run that is there stays as it is"
    assert log.append({**CONDITION, "layer": 4}, {}, TABLE) != first
    assert len(log.ids()) == 2


def test_find_by_content_hash(store: Path) -> None:
    log = RunLog(store)
    digest = "0123456789abcdef" * 4
    assert log.find(digest) is None
    assert log.append(CONDITION, {}, TABLE, content_hash=digest) == digest[:16] == log.find(digest)
    assert log.find(digest[:16] + "f" * 48) is None, "only the first 16 digits agree"
    assert log.find(condition_hash(CONDITION)) is None


def test_list_shows_conditions_summaries_and_damage(store: Path) -> None:
    log = RunLog(store)
    assert log.list().columns[:3] == ["run_id", "created", "problem"]
    assert log.list().height == 0
    first = log.append(CONDITION, {"kl": 1, "note": "a"}, TABLE)
    second = log.append({**CONDITION, "layer": 4, "alpha": 1}, {"kl": 0.5, "note": 7}, TABLE)
    table = log.list()
    assert table["run_id"].to_list() == [second, first]
    assert table["layer"].to_list() == [4, 3]
    assert table["kl"].to_list() == [0.5, 1.0]
    assert table["note"].to_list() == ["7", "a"]
    assert table["problem"].null_count() == 2
    path = store / "runs" / first / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"kl": 1', b'"kl": 9'))
    damaged = RunLog(store).list().filter(pl.col("run_id") == first)["problem"].item()
    assert "run.json is damaged" in damaged
    assert [problem.chunk for problem in verify(store)] == [first]


@pytest.mark.fault
def test_damaged_and_missing_runs(store: Path) -> None:
    log = RunLog(store)
    run_id = log.append(CONDITION, {}, TABLE)
    path = store / "runs" / run_id / "table.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match=rf"Table table of run {run_id} is damaged.*Run it again"):
        log.open(run_id)
    assert log.find(condition_hash(CONDITION)) is None
    assert log.append(CONDITION, {"again": True}, TABLE) == run_id, "running it again repairs it"
    assert log.open(run_id).table.equals(TABLE)
    for name in ("nothere", "../manifest", ""):
        with pytest.raises(StoreError, match=r"There is no run"):
            log.open(name)


@pytest.mark.fault
def test_many_appenders_of_the_same_and_of_different_runs(store: Path) -> None:
    script = (
        "import sys, polars as pl; from store.runs import RunLog\n"
        "log = RunLog(sys.argv[1])\n"
        "for layer in range(8):\n"
        "    log.append({'layer': layer}, {'kl': layer / 2}, pl.DataFrame({'x': [layer] * 50}))\n"
    )
    root = Path(__file__).resolve().parents[2]
    children = [subprocess.Popen([sys.executable, "-c", script, str(store)], cwd=root) for _ in range(2)]
    log = RunLog(store)
    threads = [
        threading.Thread(
            target=lambda: [log.append({"layer": k}, {"kl": k / 2}, TABLE.head(0)) for k in range(4, 12)]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(60) for child in children] == [0, 0]
    assert len(log.ids()) == 12
    assert sorted(log.open(run_id).summary["kl"] for run_id in log.ids()) == [k / 2 for k in range(12)]
    assert verify(store) == []
    assert not [p for p in (store / "runs").iterdir() if p.name.startswith(".")]


@pytest.mark.fault
def test_the_first_of_two_racing_appenders_counts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer publishes the same run just after this one has looked for it."""
    real, looked = RunLog._intact, []

    def intact(self: RunLog, run_id: str) -> bool:
        looked.append(run_id)
        if len(looked) == 1:
            RunLog(store).append(CONDITION, {"by": "the other"}, TABLE)
            return False
        return real(self, run_id)

    monkeypatch.setattr(RunLog, "_intact", intact)
    log = RunLog(store)
    run_id = log.append(CONDITION, {"by": "this one"}, TABLE.head(0))
    assert log.open(run_id).summary == {"by": "the other"}
    assert [p.name for p in (store / "runs").iterdir()] == [run_id]


@pytest.mark.fault
@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5])
def test_a_killed_append_leaves_nothing_visible(store: Path, moment: int) -> None:
    script = f"""
import os, signal, sys, polars as pl
from store.runs import RunLog
calls, real = 0, (os.replace, os.write, os.rename)
def counted(number):
    def call(*arguments):
        global calls
        calls += 1
        if calls == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real[number](*arguments)
    return call
os.replace, os.write, os.rename = counted(0), counted(1), counted(2)
RunLog(sys.argv[1]).append({{"layer": 1}}, {{}}, pl.DataFrame({{"x": [1]}}))
"""
    root = Path(__file__).resolve().parents[2]
    died = subprocess.run([sys.executable, "-c", script, str(store)], cwd=root, check=False)
    assert died.returncode == -signal.SIGKILL
    log = RunLog(store)
    assert log.ids() == []
    assert verify(store) == []
    assert log.open(log.append({"layer": 1}, {}, TABLE)).table.equals(TABLE)
    for rest in (store / "runs").glob(".tmp-*"):
        os.utime(rest, (0, 0))
    log.append({"layer": 2}, {}, TABLE)
    assert not list((store / "runs").glob(".tmp-*")), "what a killed writer left is removed after an hour"


@pytest.mark.fault
def test_a_full_disk_keeps_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", write)
        with pytest.raises(StoreError, match=r"disk is full"):
            RunLog(store).append(CONDITION, {}, TABLE)
    assert list((store / "runs").iterdir()) == []


def test_folders_that_go_while_the_store_is_walked_are_no_error(tmp_path: Path) -> None:
    """A writer's hidden folder is renamed or removed between two looks of a reader."""
    files.atomic_write(tmp_path / "runs" / "kept" / "run.json", [b"{}"])
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for number in range(20):
                (tmp_path / "runs" / f".tmp-{number}" / "deep").mkdir(parents=True)
            for number in range(20):
                (tmp_path / "runs" / f".tmp-{number}" / "deep").rmdir()
                (tmp_path / "runs" / f".tmp-{number}").rmdir()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        walked = [LocalSource(tmp_path).walk("runs") for _ in range(500)]
    finally:
        over.set()
        writer.join()
    assert walked == [["kept/run.json"]] * 500
