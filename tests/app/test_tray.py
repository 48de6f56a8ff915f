"""The tray in the sidebar: the device, its choice, the worker's memory, and every job of the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from modelless_worker import RUNNER, MemoryRuns, condition
from streamlit.testing.v1 import AppTest

from app.frame import running as live_view
from app.live.jobs import JobStatus
from app.live.worker import Worker
from app.tray import view
from engine.errors import JobError
from engine.models import memory
from engine.models.checkpoint import devices


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    (tmp_path / "fake_runner.py").write_text(RUNNER)
    with Worker(
        ("cpu",), runner="fake_runner:FakeRunner", runs=MemoryRuns(), python_path=[tmp_path], patience=1.0
    ) as made:
        monkeypatch.setattr(live_view, "worker", lambda: made)
        yield made


def _page() -> None:
    from types import SimpleNamespace

    from app.tray import view

    view.show(SimpleNamespace(can_run=True))  # type: ignore[arg-type]


def _opened() -> AppTest:
    """The tray, open."""
    app = AppTest.from_function(_page, default_timeout=60)
    app.session_state["tray"] = True
    return app.run()


def said(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in app.caption)


def test_an_idle_server_says_so(worker: Worker) -> None:
    assert view.label([], "auto") == "any device · idle"
    assert view.label([], "cpu") == "cpu · idle"
    app = _opened()
    assert not app.exception
    assert "No worker process runs" in said(app)
    assert "Nothing runs or waits" in said(app)


def test_jobs_are_listed_in_their_order_and_cancelled_one_by_one(worker: Worker, tmp_path: Path) -> None:
    first = worker.submit(tmp_path, condition(1, "steps=5000"), "a")
    second = worker.submit(tmp_path, condition(2, "steps=5000"), "b")
    while worker.status(first).state != "running" or not worker.status(first).total:
        worker.wait(first, 0.05)
    going = [job.job_id for job in view._going()]
    assert going == [first, second]
    app = _opened()
    assert "waiting" in said(app)
    assert app.selectbox[0].disabled
    with pytest.raises(JobError, match="can't be changed while experiments run"):
        worker.move("auto")
    app.button(key=f"tray-cancel-{second}").click().run()
    assert worker.status(second).state == "cancelled"
    assert worker.status(first).state == "running"
    app.button(key=f"tray-cancel-{first}").click().run()
    assert worker.wait(first, 20).state == "cancelled"
    assert not view._going()


def test_all_are_cancelled_by_one_click(worker: Worker, tmp_path: Path) -> None:
    asked = [worker.submit(tmp_path, condition(layer, "steps=5000")) for layer in range(view.SHOWN + 3)]
    while worker.status(asked[0]).state != "running":
        worker.wait(asked[0], 0.05)
    app = _opened()
    assert "and 3 more, which wait" in said(app)
    app.button(key="tray-cancel-all").click().run()
    assert {worker.wait(job, 20).state for job in asked} == {"cancelled"}


def test_another_device_is_another_process(worker: Worker, tmp_path: Path) -> None:
    done = worker.wait(worker.submit(tmp_path, condition(1, "steps=2")), 30)
    assert (done.state, done.device) == ("done", "cpu")
    [before] = worker.process_ids()
    app = _opened()
    assert app.selectbox[0].value == "cpu"
    assert app.selectbox[0].options == ["auto", *devices()]
    app.selectbox[0].set_value("auto").run()
    assert worker.device == "auto"
    until = time.monotonic() + 20
    while psutil.pid_exists(before) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(before)
    again = worker.wait(worker.submit(tmp_path, condition(1, "steps=3")), 30)
    assert again.device == "auto"
    worker.move("auto")
    [kept] = worker.process_ids()
    assert kept != before


def test_memory_is_that_of_the_processes() -> None:
    own = psutil.Process(os.getpid()).memory_info().rss
    told = view.memory([os.getpid()], None)
    assert told.startswith("The worker holds ")
    assert own > 1e6
    number, unit = told.removeprefix("The worker holds ").split()[:2]
    assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] == pytest.approx(own, rel=0.1)
    assert "6.0 GB of 80.0 GB on its GPUs" in view.memory([os.getpid()], (6 * 10**9, 80 * 10**9))


def test_memory_of_gpus_counts_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.on_devices() is None
    cuda = memory.torch.cuda
    monkeypatch.setattr(cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 3)
    monkeypatch.setattr(cuda, "memory_reserved", lambda index: index % 2 * 5)
    monkeypatch.setattr(cuda, "mem_get_info", lambda index: (30 * index, 100 * index))
    assert memory.on_devices() == (70, 100)


def test_a_running_job_names_its_device() -> None:
    job = JobStatus("id", "key", "store", None, "running", device="cuda:0")
    assert view.label([job, job], "auto") == "cuda:0 · 2 experiments"


def test_what_another_session_chose_is_shown(worker: Worker) -> None:
    one, other = _opened(), _opened()
    one.selectbox[0].set_value("auto").run()
    assert worker.device == "auto"
    other.run()
    assert other.selectbox[0].value == "auto"
    other.selectbox[0].set_value("cpu").run()
    assert worker.device == "cpu"


def test_work_that_does_not_listen_is_still_running(worker: Worker, tmp_path: Path) -> None:
    deaf = condition(1, "deaf")
    first = worker.submit(tmp_path, deaf)
    while worker.status(first).state != "running":
        worker.wait(first, 0.05)
    worker.cancel(first)
    again = worker.submit(tmp_path, deaf)
    worker.cancel(again)
    begun = time.monotonic()
    with pytest.raises(JobError, match="can't be changed"):
        worker.move("auto")
    assert time.monotonic() - begun < 0.5  # nobody else waits for it meanwhile
