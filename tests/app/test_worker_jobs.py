"""The worker's queue, sharing, cancelling and messages, with a runner that needs no model."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from modelless_worker import RUNNER, MemoryRuns, condition

from app.live.jobs import death_reason
from app.live.worker import Worker
from engine.errors import JobError, PatchError


@pytest.fixture(scope="module")
def runner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    (folder / "fake_runner.py").write_text(RUNNER)
    return folder


@pytest.fixture
def worker(runner_folder: Path):
    with Worker(
        ["cpu"], runner="fake_runner:FakeRunner", runs=MemoryRuns(), python_path=[runner_folder]
    ) as started:
        yield started


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def wait_until_running(worker: Worker, job: str) -> None:
    while worker.status(job).done == 0:
        assert not worker.status(job).over, worker.status(job)
        time.sleep(0.01)


def test_a_job_runs_to_its_end_and_says_where(worker: Worker, tmp_path: Path) -> None:
    assert worker.process_ids() == []  # nothing is started before there is work
    job = worker.submit(tmp_path, condition(3))
    end = worker.wait(job, 60)
    assert (end.state, end.run_id, end.device, end.message) == ("done", "run-3", "cpu", "finished")
    assert end.partial == {"layer": 3}
    assert end.fraction == 1.0
    assert worker.result(job).condition == {"run": "run-3"}
    assert len(worker.process_ids()) == 1


def test_two_submissions_of_one_condition_run_once(worker: Worker, tmp_path: Path) -> None:
    first = worker.submit(tmp_path, condition(1, "steps=10"))
    second = worker.submit(tmp_path, condition(1, "steps=10"))
    assert first != second
    assert worker.wait(first, 60).run_id == worker.wait(second, 60).run_id == "run-1"
    assert worker.status(second).shared
    assert calls(tmp_path) == ["1"]


def test_the_same_condition_in_another_store_is_another_job(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    jobs = [worker.submit(tmp_path / name, condition(1, "steps=5")) for name in "ab"]
    assert [worker.wait(job, 60).state for job in jobs] == ["done", "done"]
    assert calls(tmp_path / "a") == calls(tmp_path / "b") == ["1"]


def test_a_finished_condition_is_answered_from_the_store(runner_folder: Path, tmp_path: Path) -> None:
    runs = MemoryRuns()
    asked = condition(4)
    runs.stored[str(tmp_path), asked.content_hash(runs.fingerprint(str(tmp_path)))] = "stored-run"
    with Worker(["cpu"], runner="fake_runner:FakeRunner", runs=runs, python_path=[runner_folder]) as started:
        status = started.status(started.submit(tmp_path, asked))
        assert (status.state, status.run_id) == ("done", "stored-run")
        assert started.process_ids() == []
    assert calls(tmp_path) == []


def test_cancel_stops_the_running_job_and_leaves_the_queued_one(worker: Worker, tmp_path: Path) -> None:
    long = worker.submit(tmp_path, condition(1, "steps=3000"))
    other = worker.submit(tmp_path, condition(2, "steps=3"))
    wait_until_running(worker, long)
    assert worker.status(other).state == "queued"
    worker.cancel(long)
    assert worker.status(long).state == "cancelled"
    assert worker.wait(other, 60).run_id == "run-2"
    assert worker.status(long).done < 3000
    with pytest.raises(JobError, match=r"has no result.*cancelled"):
        worker.result(long)


def test_cancelling_one_of_two_sharers_leaves_the_other(worker: Worker, tmp_path: Path) -> None:
    first = worker.submit(tmp_path, condition(1, "steps=40"))
    second = worker.submit(tmp_path, condition(1, "steps=40"))
    wait_until_running(worker, first)
    worker.cancel(first)
    worker.cancel(first)
    assert worker.status(first).state == "cancelled"
    assert worker.wait(second, 60).state == "done"
    assert calls(tmp_path) == ["1"]


def test_a_cancelled_queued_job_never_runs(worker: Worker, tmp_path: Path) -> None:
    long = worker.submit(tmp_path, condition(1, "steps=50"))
    queued = worker.submit(tmp_path, condition(2))
    worker.cancel(queued)
    assert worker.status(queued).state == "cancelled"
    worker.wait(long, 60)
    last = worker.submit(tmp_path, condition(3))
    worker.wait(last, 60)
    assert calls(tmp_path) == ["1", "3"]


def test_cancelled_work_that_does_not_listen_loses_its_process(runner_folder: Path, tmp_path: Path) -> None:
    about = {"runner": "fake_runner:FakeRunner", "runs": MemoryRuns(), "python_path": [runner_folder]}
    with Worker(("cpu",), **about, patience=0.2) as worker:
        deaf = worker.submit(tmp_path, condition(1, "deaf"))
        next_one = worker.submit(tmp_path, condition(2))
        while not calls(tmp_path):
            time.sleep(0.01)
        (process,) = worker.process_ids()
        worker.cancel(deaf)
        assert worker.wait(next_one, 60).state == "done"
        assert worker.status(deaf).state == "cancelled"
        assert worker.status(deaf).error is None
        assert worker.process_ids() != [process]


def test_owners_take_turns(worker: Worker, tmp_path: Path) -> None:
    """One session asks for six layers, two others for one or two each: nobody waits for all six."""
    first = worker.submit(tmp_path, condition(0, "steps=20"), owner="a")
    wait_until_running(worker, first)
    jobs = [worker.submit(tmp_path, condition(layer), owner="a") for layer in range(1, 6)]
    jobs += [worker.submit(tmp_path, condition(layer), owner="b") for layer in (11, 12)]
    jobs += [worker.submit(tmp_path, condition(21), owner="c")]
    ahead = {worker.status(job).condition.layer: worker.status(job).ahead for job in jobs}
    assert all(worker.wait(job, 60).state == "done" for job in jobs)
    served = [int(call) for call in calls(tmp_path)]
    assert served == [0, 11, 21, 1, 12, 2, 3, 4, 5]
    assert ahead == {layer: place - 1 for place, layer in enumerate(served) if layer}


def test_a_condition_asked_again_after_its_cancel_runs_anew(worker: Worker, tmp_path: Path) -> None:
    first = worker.submit(tmp_path, condition(1, "steps=60"))
    wait_until_running(worker, first)
    worker.cancel(first)
    again = worker.submit(tmp_path, condition(1, "steps=60"))
    assert worker.wait(again, 60).state == "done"
    assert worker.status(first).state == "cancelled"
    assert calls(tmp_path) == ["1", "1"]


def test_many_threads_get_their_own_results(worker: Worker, tmp_path: Path) -> None:
    wrong: list[object] = []

    def session(offset: int) -> None:
        for layer in range(offset, offset + 5):
            end = worker.wait(worker.submit(tmp_path, condition(layer, "steps=2")), 120)
            if (end.state, end.run_id, end.partial) != ("done", f"run-{layer}", {"layer": layer}):
                wrong.append(end)

    threads = [threading.Thread(target=session, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(map(int, calls(tmp_path))) == [10 * i + j for i in range(4) for j in range(5)]
    assert len(worker.jobs()) == 20


def test_an_error_raised_on_purpose_keeps_its_message(worker: Worker, tmp_path: Path) -> None:
    end = worker.wait(worker.submit(tmp_path, condition(1, "fail")), 60)
    assert end.state == "failed"
    assert end.error == str(PatchError("The widths differ.", expected=8, given=16))


def test_an_unexpected_error_gets_an_id_and_goes_to_the_log(
    worker: Worker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end = worker.wait(worker.submit(tmp_path, condition(1, "boom")), 60)
    assert end.state == "failed"
    assert "secret detail" not in (end.error or "")
    error_id = (end.error or "").split("(error ")[1][:8]
    logged = capfd.readouterr().err
    assert error_id in logged
    assert "secret detail" in logged


def test_out_of_memory_says_so(worker: Worker, tmp_path: Path) -> None:
    end = worker.wait(worker.submit(tmp_path, condition(1, "oom")), 60)
    assert end.state == "failed"
    assert "ran out of memory: CUDA out of memory" in (end.error or "")
    assert "fewer alphas" in (end.error or "")


def test_a_result_that_cannot_be_stored_is_kept(worker: Worker, tmp_path: Path) -> None:
    end = worker.wait(worker.submit(tmp_path, condition(7, "unsaved")), 60)
    assert (end.state, end.run_id) == ("done", None)
    assert "read-only" in end.message
    assert worker.result(end.job_id).table.to_dict(as_series=False) == {"id": ["a"]}
    again = worker.submit(tmp_path, condition(7, "unsaved"))
    assert worker.wait(again, 60).state == "done"
    assert calls(tmp_path) == ["7"]  # asked again, answered from memory


def test_an_unknown_job_is_named(worker: Worker) -> None:
    with pytest.raises(JobError, match=r"no job 'abc'.*Runs page"):
        worker.status("abc")


def test_close_cancels_and_refuses(runner_folder: Path, tmp_path: Path) -> None:
    worker = Worker(["cpu"], runner="fake_runner:FakeRunner", runs=MemoryRuns(), python_path=[runner_folder])
    long = worker.submit(tmp_path, condition(1, "steps=3000"))
    queued = worker.submit(tmp_path, condition(2))
    wait_until_running(worker, long)
    worker.close()
    assert worker.process_ids() == []
    assert worker.status(long).state == worker.status(queued).state == "cancelled"
    with pytest.raises(JobError, match="shut down"):
        worker.submit(tmp_path, condition(3))


def test_death_is_told_in_words() -> None:
    assert "SIGKILL" in death_reason(-9)
    assert "memory" in death_reason(-9)
    assert "memory" not in death_reason(-11)
    assert death_reason(3) == "exited with status 3"
