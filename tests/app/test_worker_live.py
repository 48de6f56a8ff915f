"""The worker with real models: what pages get is what a script computes, whoever asks and cancels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_study import BLOCKS, CHANGED, make_store

from app.live.model_cache import ModelCache
from app.live.run import compute
from app.live.worker import Worker
from engine.patching.spec import Condition
from engine.rank.spec import RankSweep
from store.reader import Store
from store.runs import RunLog


def condition(**changes: Any) -> Condition:
    plain = {"target": "tuned", "source": "base", "component": "resid_post", "layer": CHANGED}
    return Condition(**{**plain, "n_boot": 200, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("live"), "bfloat16")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(["cpu"]) as started:
        yield started


def test_a_patch_runs_in_the_worker_and_is_kept(worker: Worker, store: Path) -> None:
    asked = condition(kind="literal", alphas=(0.0, 0.5, 1.0))
    seen: list[str] = []
    job = worker.submit(store, asked)
    while not (status := worker.status(job)).over:
        seen.append(status.message)
        time.sleep(0.005)
    assert (status.state, status.device, status.error) == ("done", "cpu", None)
    assert any(message.startswith("Loading the model") for message in seen)
    direct = compute(Store(store), asked, ModelCache("cpu"), lambda **_: None, lambda: False)
    result = worker.result(job)
    # another process with its own threads: float32 rounding of the same sums
    np.testing.assert_allclose(result.table["kl"], direct.table["kl"], rtol=1e-4, atol=1e-6)
    assert result.table.drop("kl", "p_after", "p_before").equals(
        direct.table.drop("kl", "p_after", "p_before")
    )
    assert [row["alpha"] for row in result.summary["curve"]] == [0.0, 0.5, 1.0]
    assert status.partial is not None
    assert status.partial["curve"][2]["kl"] == pytest.approx(result.summary["curve"][2]["kl"])
    opened = RunLog(store).open(str(status.run_id))  # without worker or model
    assert opened.table.equals(result.table)
    with Worker(["cpu"]) as fresh:
        again = fresh.status(fresh.submit(store, asked))
        assert (again.state, again.run_id) == ("done", status.run_id)
        assert fresh.process_ids() == []


def test_sessions_at_the_same_time_get_their_own_results(worker: Worker, store: Path) -> None:
    """Four sessions, other directions, layers and kinds; one condition asked by two of them."""
    plans = [
        [condition(layer=layer, kind="literal", component="mlp_out") for layer in range(BLOCKS)],
        [condition(layer=layer, target="base", source="tuned", kind="literal") for layer in range(BLOCKS)],
        [condition(layer=layer, kind="raw", position="decision") for layer in range(BLOCKS)],
        [condition(layer=layer, kind="literal", component="mlp_out") for layer in reversed(range(BLOCKS))],
    ]
    found: dict[int, list[Any]] = {}

    def session(number: int) -> None:
        jobs = [worker.submit(store, asked) for asked in plans[number]]
        found[number] = [(worker.wait(job, 120), worker.result(job)) for job in jobs]

    threads = [threading.Thread(target=session, args=(i,)) for i in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache, reader = ModelCache("cpu"), Store(store)
    for number, plan in enumerate(plans):
        for asked, (status, result) in zip(plan, found[number], strict=True):
            assert status.state == "done"
            assert Condition.from_json(result.condition) == asked
            direct = compute(reader, asked, cache, lambda **_: None, lambda: False)
            np.testing.assert_allclose(result.table["kl"], direct.kl[0], rtol=1e-4, atol=1e-6)
    shared = {status.run_id for status, _ in found[0]}
    assert shared == {status.run_id for status, _ in found[3]}
    assert len(worker.process_ids()) == 1


def test_cancelling_one_patch_leaves_the_other(worker: Worker, store: Path) -> None:
    every = {"alphas": tuple(np.linspace(0.5, 2, 64)), "ks": tuple(range(1, 33)), "draws": 50, "folds": 20}
    pair = {"target": "tuned", "source": "base", "component": "resid_post", "layer": CHANGED}
    long = RankSweep.model_validate({**pair, **every})
    other = condition(kind="literal", component="attn_out", alphas=(0.25,))
    first, second = worker.submit(store, long), worker.submit(store, other)
    while worker.status(first).done == 0:
        assert not worker.status(first).over, worker.status(first)
        time.sleep(0.01)
    before = worker.process_ids()
    worker.cancel(first)
    assert worker.wait(second, 120).state == "done"
    stopped = worker.status(first)
    assert stopped.state == "cancelled"
    assert stopped.done < stopped.total
    assert worker.process_ids() == before
    assert RunLog(store).find(stopped.key) is None  # nothing of the cancelled one was kept
    assert Condition.from_json(worker.result(second).condition) == other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": BLOCKS}, "is out of range for tuned"),
        ({"source": "other", "component": "head_z"}, "different widths at head_z@2"),
        ({"where": {"category": "none"}}, "No prompt fits this choice"),
    ],
)
def test_what_cannot_be_run_fails_with_its_own_words(
    worker: Worker, store: Path, changes: dict[str, Any], said: str
) -> None:
    end = worker.wait(worker.submit(store, condition(**changes)), 120)
    assert end.state == "failed"
    assert said in (end.error or "")
    assert "error " not in (end.error or "")  # no id of an unexpected error
