"""Runs live experiments on a store; no Streamlit.

`run_live` is the whole way, for scripts; `LiveRunner` is what the worker process keeps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from app.live.jobs import JobResult, Outcome, Report
from app.live.lab import StoreLab
from app.live.own_code import with_own_code
from engine.errors import StoreError
from engine.lab.experiment import Experiment, Result
from store.reader import Store
from store.runs import MAIN_TABLE, RunLog

if TYPE_CHECKING:
    from app.live.model_cache import ModelCache

log = logging.getLogger("patchbay.worker")


class StoreRuns:
    """The worker's view of stored runs (`app.live.worker.RunIndex`), read anew each time."""

    def fingerprint(self, store_path: str) -> str:
        """The fingerprint of the study the store was made from; raises StoreError."""
        return Store(store_path).fingerprint

    def find(self, store_path: str, key: str) -> str | None:
        """The run with this content hash, or None."""
        return RunLog(store_path).find(key)

    def open(self, store_path: str, run_id: str) -> JobResult:
        """A stored run; raises StoreError when it is damaged or gone."""
        run = RunLog(store_path).open(run_id)
        return JobResult(run.condition, run.summary, run.tables)


class LiveRunner:
    """Runs conditions with models that stay loaded; one job at a time (`app.live.jobs.Runner`)."""

    def __init__(self, device: str = "auto", max_models: int = 2, allow_code: bool = False) -> None:
        from transformers.utils import logging as transformers_logging

        from app.live.model_cache import ModelCache

        transformers_logging.disable_progress_bar()  # a process without a terminal: its bars fill the log
        self._cache, self._allow_code = ModelCache(device, max_models), allow_code

    def run(
        self, store_path: str, condition: Experiment, report: Report, should_stop: Callable[[], bool]
    ) -> Outcome:
        """Runs an experiment and appends its result to the store."""
        from engine.models.memory import on_devices

        store, begun = Store(store_path), time.perf_counter()
        RunLog(store_path).writable()
        check_trusted(store)
        result = compute(store, condition, self._cache, report, should_stop, self._allow_code)
        report(memory=on_devices())
        seconds = time.perf_counter() - begun
        try:
            run_id, message = save(store_path, store.fingerprint, condition, result, seconds), ""
        except (StoreError, OSError) as error:
            log.warning("a result could not be stored: %s", error)
            kept = JobResult(condition.to_json(), result.summary, result.tables)
            return Outcome(None, result.summary, f"Not saved: {error}", kept)
        return Outcome(run_id, result.summary, message)


def run_live(
    store_path: str,
    experiment: Experiment,
    device: str = "auto",
    report: Report | None = None,
    allow_code: bool = False,
    despite_failed_checks: bool = False,
) -> tuple[str, Result]:
    """Runs one experiment on a store without a worker and appends the result; for scripts.

    Args:
        allow_code: let the study's own candidates run; subspace scores then have them.
        despite_failed_checks: run on a store that failed its own checks, too.

    Returns:
        the stored run's id and the result. Raises what `compute` and the store raise.
    """
    from app.live.model_cache import ModelCache

    store, begun = Store(store_path), time.perf_counter()
    RunLog(store_path).writable()
    check_trusted(store, despite_failed_checks)
    experiment = with_own_code(experiment, store, allow_code)
    result = compute(store, experiment, ModelCache(device), report or _silent, _never, allow_code)
    return save(store_path, store.fingerprint, experiment, result, time.perf_counter() - begun), result


def check_trusted(store: Store, despite: bool = False) -> None:
    """Refuses to make numbers from a store that failed its own checks, as pages and reports do.

    Args:
        despite: make them nevertheless; the log says so.

    Raises:
        StoreError: naming the checks.
    """
    failed = [c for c in store.self_checks() if not c["passed"]]
    if not failed:
        return
    names = "; ".join(dict.fromkeys(f"{c.get('model', 'store')}: {c['name']}" for c in failed))
    if despite:
        log.warning(
            "the store at %s failed its own checks (%s); what is run on it may be wrong", store.path, names
        )
        return
    raise StoreError(
        "This store failed its own checks: nothing is run on it.",
        expected="every self-check of the precompute run to hold",
        given=names,
        next_step="run precompute.py on a study that passes; --despite-failed-checks runs it nevertheless.",
    )


def save(
    store_path: str, fingerprint: str, experiment: Experiment, result: Result, seconds: float | None = None
) -> str:
    """Appends a result to the store's runs and returns its id, the start of its content hash."""
    key = experiment.content_hash(fingerprint)
    tables = dict(result.tables)
    table = tables.pop(MAIN_TABLE)
    return RunLog(store_path).append(
        experiment.to_json(), result.summary, table, tables, content_hash=key, seconds=seconds
    )


def compute(
    store: Store,
    experiment: Experiment,
    cache: ModelCache,
    report: Report,
    should_stop: Callable[[], bool],
    allow_code: bool = False,
    awaited: Collection[str] = (),
) -> Result:
    """Runs an experiment on the prompts of a store.

    Args:
        awaited: content hashes of experiments whose results others are about to store.

    Raises:
        NotYet: it builds on one of those.
        PatchError, SiteError, ModelError: the experiment, a model or a check fails.
        JobError: `should_stop` was true between batches.
    """
    return experiment.run(StoreLab(store, cache, report, should_stop, allow_code, awaited))


def _silent(**_changes: Any) -> None:
    """A report that goes nowhere."""


def _never() -> bool:
    return False
