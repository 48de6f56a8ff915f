"""One contract for work here and on Ray: the same results and bytes, whatever dies meanwhile."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import s3_server
from live_study import CHANGED, make_store
from odd_jobs import Odd
from tiny_study import write_study

import precompute
from app.build.build import build
from app.live import headless
from app.live.lab import StoreLab
from app.workers import ray_actors, ray_cluster
from app.workers.asked import HERE, ROOT, Workers
from app.workers.hands import Here, WorkerDied
from app.workers.hire import hire
from engine.errors import JobError, PatchError, StoreError
from engine.lab.experiment import ExperimentResult
from engine.patching.spec import Condition
from engine.study.study import Study
from store.layout import MANIFEST
from store.runs import RunLog

TESTS = Path(__file__).parent
UNITS = "ledger/*-0*"


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a cluster of two processors, which is there afterwards as before."""
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tempfile.mkdtemp(prefix="pb", dir="/tmp")  # Ray's sockets lie below: a short path
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}"]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment["RAY_raylet_start_wait_time_s"] = "300"  # on a busy machine
    address = f"127.0.0.1:{port}"
    said = Path(temporary, "said")
    with open(said, "wb") as out:
        process = subprocess.Popen(command, env=environment, cwd=temporary, stdout=out)
    try:
        while process.poll() is None and b"Ray runtime started" not in said.read_bytes():
            time.sleep(0.2)
        yield address
        assert process.poll() is None
        with ray_cluster.cluster(address, None) as ray:
            assert ray.cluster_resources()["CPU"] == 2
            until = time.monotonic() + 60
            while ray.available_resources().get("CPU") != 2:
                assert time.monotonic() < until, "something of ours still has its place"
                time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(params=["local", "ray"])
def asked(request: pytest.FixtureRequest) -> Workers:
    if request.param == "local":
        return HERE
    return Workers("ray", request.getfixturevalue("head"), 2)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), pairs=24, positions=["decision"])


@pytest.fixture(scope="module")
def alone(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process writes."""
    path = tmp_path_factory.mktemp("alone") / "s"
    build(Study.load(study), path, quiet=True)
    return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("live"), "float32")


class Killer(threading.Thread):
    """Kills an actor each time that a store has something more, named by a pattern, so many times."""

    def __init__(self, store: Path, pattern: str, count: int) -> None:
        super().__init__(daemon=True)
        self.store, self.pattern, self.count = store, pattern, count
        self.killed, self.over = set[int](), threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.count and not self.over.wait(0.02):
            alive = actors() - self.killed
            if alive and len(list(self.store.glob(self.pattern))) > len(self.killed):
                os.kill(max(alive), signal.SIGKILL)
                self.killed.add(max(alive))

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        self.join()


def actors() -> set[int]:
    """Process ids of the actors that live."""
    return {one.pid for one in psutil.process_iter(["name"]) if one.info["name"].startswith("ray::Actor")}


def bytes_of(store: Path) -> dict[str, bytes]:
    """Every file; of the manifest, which says when it was written, the digests of them all."""
    found = s3_server.files(store)
    return found | {MANIFEST: json.dumps(json.loads(found[MANIFEST])["ledger"]).encode()}


def literal(layer: int, **changes: object) -> Condition:
    plain = {"target": "tuned", "source": "base", "component": "resid_post", "kind": "literal", "n_boot": 100}
    return Condition.model_validate({**plain, "layer": layer, **changes})


def test_every_task_is_done_and_told_whatever_becomes_of_others(asked: Workers, tmp_path: Path) -> None:
    told: dict[Any, dict[str, Any]] = {}

    def tell(task: Any, **changes: Any) -> None:
        told.setdefault(task, {}).update(changes)

    tasks = [3, "refused", "slow", "fails", 4]
    with hire(asked, Odd(tmp_path), tmp_path, len(tasks)) as there:
        ended = {task: (came, error) for task, came, error in there.each(tasks, tell)}
    assert {task: came for task, (came, error) in ended.items() if error is None} == {
        3: 9,
        "slow": "slow",
        4: 16,
    }
    refused = ended["refused"][1]
    assert isinstance(refused, PatchError)
    assert (str(refused), refused.next_step) == (
        "No. Expected: a yes. Given: a no. Next: say yes.",
        "say yes.",
    )
    assert isinstance(ended["fails"][1], ValueError)
    assert told == {"slow": {"done": 1, "total": 2, "message": "half"}}
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_kills_its_workers_is_not_begun_for_ever(head: str, tmp_path: Path) -> None:
    tasks = [("dies", 99), 5]
    with hire(Workers("ray", head, 2), Odd(tmp_path), tmp_path, len(tasks)) as there:
        ended = {task: (came, error) for task, came, error in there.each(tasks, lambda *_, **__: None)}
    assert ended[5] == (25, None)
    assert isinstance(ended["dies", 99][1], WorkerDied)
    assert "those that began it again (3 times)" in str(ended["dies", 99][1])
    assert len((tmp_path / "99").read_text()) == ray_actors.RETRIES + 1


def test_a_store_is_that_of_one_process_though_its_writers_are_killed(
    head: str, study: Path, alone: Path, tmp_path: Path
) -> None:
    with Killer(tmp_path / "s", UNITS, 3) as killer:
        build(Study.load(study), tmp_path / "s", quiet=True, workers=Workers("ray", head, 2))
    assert len(killer.killed) == 3
    assert bytes_of(tmp_path / "s") == bytes_of(alone)


def test_experiments_give_the_runs_of_one_process(head: str, live: Path) -> None:
    """Though a worker is killed; the one that can't be run says so; what is stored isn't run again."""
    wanted = [literal(CHANGED), literal(99), literal(CHANGED - 1), literal(CHANGED, position="decision")]
    found = []
    for name, workers, deaths in (("local", HERE, 0), ("ray", Workers("ray", head, 2), 1)):
        store = live.with_name(name)  # beside its models
        shutil.copytree(live, store)
        with Killer(store, MANIFEST, deaths) as killer:
            failed = headless.run_all(str(store), wanted, device="cpu", quiet=True, workers=workers)
        assert len(killer.killed) == deaths
        runs = [RunLog(store).open(run_id) for run_id in RunLog(store).ids()]
        tables = {file.relative_to(store): file.read_bytes() for file in (store / "runs").rglob("*.parquet")}
        assert not list(store.rglob(".tmp-*"))
        found.append(([str(e) for _, e in failed], [(r.run_id, r.summary) for r in runs], tables))
    assert found[0] == found[1]
    assert "Layer 99 is out of range" in found[1][0][0]
    nowhere = Workers("ray", "127.0.0.1:1", 2)  # nothing is left to do: nobody is asked
    assert headless.run_all(str(store), [wanted[0]], quiet=True, workers=nowhere) == []


def test_an_experiment_waits_for_the_one_that_it_builds_on(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hands that take tasks from behind; where the first one failed, the second is run without it."""
    order: list[tuple[int, bool]] = []

    def compute(store: Any, experiment: Condition, *rest: Any) -> ExperimentResult:
        if experiment.layer == 0 and experiment.seed:
            raise PatchError("No.")
        of = experiment.model_copy(update={"layer": experiment.layer - 1})
        lab = StoreLab(store, *rest)
        built = experiment.layer > 0 and lab.stored(of) is not None
        order.append((experiment.layer, built))
        return ExperimentResult({}, {"table": pl.DataFrame({"kl": [0.0]})})

    class Backwards(Here):
        count = 2

        def each(self, tasks: Any, told: Any) -> Any:
            return super().each(list(tasks)[::-1], told)

    monkeypatch.setattr(headless, "compute", compute)
    monkeypatch.setattr(headless, "hire", lambda _asked, worker, *_: nullcontext(Backwards(worker)))
    shutil.copytree(live, tmp_path / "s")
    for seed, expected in ((0, [(0, False), (1, True), (2, True)]), (1, [(1, False), (2, True)])):
        order.clear()
        failed = headless.run_all(str(tmp_path / "s"), [literal(n, seed=seed) for n in range(3)], quiet=True)
        assert (order, len(failed)) == (expected, seed)


def test_ctrl_c_leaves_a_store_that_goes_on(head: str, study: Path, alone: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    command = ["env", "--default-signal=INT", sys.executable, str(ROOT / "precompute.py"), str(study)]
    process = subprocess.Popen(
        [*command, "--store", str(store), "--address", head],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    while process.poll() is None and not list(store.glob(UNITS)):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Nothing is lost" in said
    assert "Traceback" not in said
    until = time.monotonic() + 60
    while actors():
        assert time.monotonic() < until
        time.sleep(0.2)
    build(Study.load(study), store, quiet=True)
    assert bytes_of(store) == bytes_of(alone)


def test_more_than_the_cluster_has_is_refused(head: str, live: Path) -> None:
    for workers, given in (
        (Workers("ray", head, 3), "3 CPUs. Given: 2 CPUs and 0 GPUs"),
        (Workers("ray", head, 1, 1.0), "1 CPUs and 1 GPUs, 1 for each. Given: 2 CPUs and 0 GPUs"),
    ):
        with pytest.raises(JobError, match=f"no room.*{given}"):
            headless.run_all(str(live), [literal(n) for n in range(4)], quiet=True, workers=workers)


def test_a_cluster_of_another_version_is_refused(
    head: str, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.__version__", "2.0.0")
    with pytest.raises(JobError, match=r"of another version. Expected: .* Given: .*Ray: 2.0.0"):
        headless.run_all(str(live), [literal(0)], quiet=True, workers=Workers("ray", head, 2))


def test_another_folder_of_that_name_is_noticed(tmp_path: Path) -> None:
    from app.workers.same_folder import check_mark, marked

    with marked(tmp_path) as (place, mark):
        check_mark(place, mark)
        (tmp_path / mark).rename(tmp_path / "elsewhere")
        with pytest.raises(JobError, match=f"does not see the store's folder. Expected: {tmp_path} on every"):
            check_mark(place, mark)


def replies(server: socket.socket, answer: bytes) -> None:
    with server.accept()[0] as caller:
        caller.recv(64)
        caller.sendall(answer)


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n", "no address"])
def test_no_cluster_at_an_address_is_said_at_once(
    answer: bytes | str | None,
    live: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}" if answer != "no address" else "nowhere"
        if answer is None:
            server.close()
        elif isinstance(answer, bytes):
            threading.Thread(target=replies, args=(server, answer), daemon=True).start()
        wanted = ["run", str(live), "--condition", json.dumps(literal(0).to_json())]
        assert precompute.main([*wanted, "--engine", "ray", "--address", address]) == 1
    told = capsys.readouterr().err
    assert f"There is no Ray cluster at {address}. Expected: the address of a running cluster's head" in told
    assert {None: "refused", b"": "", "no address": "no such address"}.get(answer, "something else") in told
    assert "Next: correct --address" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "local", "--workers", "2"], "--engine local with --workers"),
        (["--engine", "local", "--address", "auto"], "--engine local with --address"),
        (["--workers", "0"], "no such number of workers. Expected: 1 or more. Given: 0"),
        (["--gpus-per-worker", "1.5"], "no such share of an accelerator"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], said: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precompute.main([str(study), *options]) == 1
    assert said in capsys.readouterr().err


def test_which_engine_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*options: str) -> Workers:
        return Workers.of(precompute.parser().parse_args(["study.toml", *options]))

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert read() == read("--workers", "1") == HERE
    assert read("--workers", "2") == Workers("ray", None, 2)
    assert read("--engine", "ray", "--gpus-per-worker", "0.5") == Workers("ray", None, None, 0.5)
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert read() == HERE
    assert read("--engine", "ray") == Workers("ray", "there:6379")
    assert read("--address", "here:6379") == Workers("ray", "here:6379")


@pytest.mark.parametrize("gpus", [-1.0, 1.5, float("inf"), float("nan")])
def test_no_such_share_of_an_accelerator(gpus: float) -> None:
    options = argparse.Namespace(engine="ray", workers=None, address=None, gpus_per_worker=gpus)
    with pytest.raises(JobError, match="Next: give one of these"):
        Workers.of(options)


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    options = argparse.Namespace(engine="ray", workers=2, address=None, gpus_per_worker=None)
    assert Workers.of(options).address is None


def test_a_store_that_takes_no_result_ends_the_list(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes next would be computed for nothing."""
    begun: list[int] = []

    def compute(_store: Any, experiment: Condition, *_rest: Any) -> ExperimentResult:
        begun.append(experiment.layer)
        return ExperimentResult({}, {"table": pl.DataFrame({"kl": [0.0]})})

    def save(*_given: Any) -> str:
        raise StoreError("The disk is full.", next_step="free some of it.")

    monkeypatch.setattr(headless, "compute", compute)
    monkeypatch.setattr(headless, "save", save)
    shutil.copytree(live, tmp_path / "s")
    with pytest.raises(StoreError, match=r"The disk is full\. Next: free some of it\."):
        headless.run_all(str(tmp_path / "s"), [literal(n) for n in range(3)], quiet=True)
    assert begun == [0]
