"""Worker processes and servers that are killed on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from app.live.jobs import JobResult
from app.live.worker import Worker
from engine.patching.spec import Condition

pytestmark = pytest.mark.fault

RUNNER = '''
import time
from app.live.jobs import Outcome
from engine.errors import JobError

class SlowRunner:
    """Counts to the condition's layer, one step each 20 ms; category "deaf" ignores cancelling."""
    def __init__(self, device, max_models):
        pass

    def run(self, store_path, condition, report, should_stop):
        for step in range(condition.layer):
            if should_stop() and condition.where.category != "deaf":
                raise JobError("cancelled")
            report(done=step + 1, total=condition.layer)
            time.sleep(0.02)
        return Outcome(f"run-{condition.layer}")
'''

SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_runs import Runs
from app.live.worker import Worker
from engine.patching.spec import Condition

worker = Worker(["cpu"], runner="slow_runner:SlowRunner", runs=Runs(), python_path=[sys.argv[1]])
job = worker.submit(sys.argv[1], Condition(
    target="t", source="b", component="resid_post", layer=100000, where={"category": sys.argv[2]}))
while worker.status(job).done == 0:
    time.sleep(0.02)
print(worker.process_ids()[0], flush=True)
if sys.argv[3] == "wait":
    time.sleep(600)
"""

RUNS = """
class Runs:
    def fingerprint(self, store_path): return "f"
    def find(self, store_path, key): return None
    def open(self, store_path, run_id): raise KeyError(run_id)
"""


class NoRuns:
    """A run index in which nothing is stored."""

    def fingerprint(self, store_path: str) -> str:
        return "f"

    def find(self, store_path: str, key: str) -> str | None:
        return None

    def open(self, store_path: str, run_id: str) -> JobResult:
        return JobResult({}, {}, {"table": pl.DataFrame()})


def condition(steps: int, category: str | None = None) -> Condition:
    return Condition(
        target="tuned", source="base", component="resid_post", layer=steps, where={"category": category}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_runner.py").write_text(RUNNER)
    (folder / "test_runs.py").write_text(RUNS)
    (folder / "server.py").write_text(SERVER)
    return folder


@pytest.fixture
def worker(folder: Path):
    with Worker(["cpu"], runner="slow_runner:SlowRunner", runs=NoRuns(), python_path=[folder]) as started:
        yield started


def wait_until_running(worker: Worker, job: str) -> None:
    while worker.status(job).done == 0:
        assert not worker.status(job).over, worker.status(job)
        time.sleep(0.01)


def is_gone(pid: int, within: float = 20.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_process_fails_its_job_with_the_reason_and_the_next_job_runs(
    worker: Worker, folder: Path
) -> None:
    victim = worker.submit(folder, condition(3000))
    queued = worker.submit(folder, condition(2))
    wait_until_running(worker, victim)
    (first_pid,) = worker.process_ids()
    os.kill(first_pid, signal.SIGKILL)
    end = worker.wait(victim, 60)
    assert end.state == "failed"
    assert "killed by SIGKILL" in (end.error or "")
    assert "started again for the next job" in (end.error or "")
    assert worker.wait(queued, 60).run_id == "run-2"
    assert worker.process_ids() != [first_pid]
    # the failed condition is not remembered as running: asked again it runs
    again = worker.submit(folder, condition(3000))
    wait_until_running(worker, again)
    worker.cancel(again)


def test_a_process_killed_between_jobs_is_replaced_unnoticed(worker: Worker, folder: Path) -> None:
    assert worker.wait(worker.submit(folder, condition(1)), 60).state == "done"
    (pid,) = worker.process_ids()
    os.kill(pid, signal.SIGKILL)
    assert worker.wait(worker.submit(folder, condition(2)), 60).run_id == "run-2"


def test_a_runner_that_cannot_be_made_fails_the_job_not_the_server(folder: Path) -> None:
    with Worker(["cpu"], runner="slow_runner:Missing", runs=NoRuns(), python_path=[folder]) as worker:
        end = worker.wait(worker.submit(folder, condition(1)), 60)
        assert end.state == "failed"
        assert "server's log" in (end.error or "")


def test_a_job_that_ignores_cancelling_does_not_survive_close(folder: Path) -> None:
    worker = Worker(["cpu"], runner="slow_runner:SlowRunner", runs=NoRuns(), python_path=[folder])
    job = worker.submit(folder, condition(100_000, "deaf"))
    wait_until_running(worker, job)
    (pid,) = worker.process_ids()
    worker.close(patience=0.5)
    assert is_gone(pid)
    assert worker.status(job).state == "cancelled"


@pytest.mark.parametrize("how", ["kill", "leave"])
@pytest.mark.parametrize("category", ["polite", "deaf"])
def test_no_process_outlives_its_server(folder: Path, how: str, category: str) -> None:
    """The server is killed with no chance to tidy up, or just leaves; a job runs meanwhile."""
    command = [sys.executable, str(folder / "server.py"), str(folder), category]
    server = subprocess.Popen([*command, "wait" if how == "kill" else "leave"], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout:
        pid = int(server.stdout.readline())
        if how == "kill":
            os.kill(server.pid, signal.SIGKILL)
        server.wait(60)
    assert is_gone(pid)
