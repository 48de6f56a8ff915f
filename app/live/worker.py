"""The server's side of live work: a queue, one process per device, and the truth about every job.

Browser sessions call `submit`, `status`, `cancel` and `result` from any thread. Each device has one process
that owns the models (`app.live.worker_process`) and one bookkeeping thread here that talks to it. The process
is a fresh interpreter, not a fork: a fork of a server with threads and a device in use is undefined.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from app.live.executions import Execution, Ticket
from app.live.jobs import (
    EndMessage,
    JobResult,
    JobSpec,
    JobStatus,
    ProgressMessage,
    RunMessage,
    State,
)
from app.live.process import DiedBefore, Process, ProcessDied
from engine.errors import JobError

log = logging.getLogger("patchbay.worker")

KEPT_TICKETS = 500
"""Submissions that are remembered after they are over."""

KEPT_RESULTS = 50
"""Executions whose result can still answer a new submission when it could not be stored."""


class RunIndex(Protocol):
    """What the worker asks of a store: its study's fingerprint, and finished runs by content hash."""

    def fingerprint(self, store_path: str) -> str: ...
    def find(self, store_path: str, key: str) -> str | None: ...
    def open(self, store_path: str, run_id: str) -> JobResult: ...


class Worker:
    """Runs conditions in one process per device; thread-safe; one instance per server.

    Args:
        devices: a process is started for each at its first job ("auto", "cpu", "cuda:0", ...).
        runner: "package.module:Class" that is made inside the process and runs the jobs.
        runs: where fingerprints and finished runs are looked up; the store's by default.
        max_models: loaded models kept by each process; the least recently used one is dropped.
        allow_code: whether the study's own candidates may be run, by a runner that takes `allow_code`.
        python_path: folders put before the process's module search path.
        patience: seconds that cancelled work has to stop by itself before its process is ended.

    A process is started only when a job needs one, so a server that is only read never loads a model.
    """

    def __init__(
        self,
        devices: Sequence[str] = ("auto",),
        *,
        runner: str = "app.live.run:LiveRunner",
        runs: RunIndex | None = None,
        max_models: int = 2,
        python_path: Sequence[str | Path] = (),
        allow_code: bool = False,
        patience: float = 60.0,
    ) -> None:
        if runs is None:
            from app.live.run import StoreRuns

            runs = StoreRuns()
        self._runs, self._patience = runs, patience
        self._wake = threading.Condition()
        self._queue: list[Execution] = []
        self._served: dict[str, int] = {}
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._active: dict[tuple[str, str], Execution] = {}
        self._recent: OrderedDict[tuple[str, str], Execution] = OrderedDict()
        self._numbers, self._services = itertools.count(1), itertools.count(1)
        self._closing = False
        self._processes = [Process(device, runner, max_models, python_path, allow_code) for device in devices]
        self._wanted = {process: process.device for process in self._processes}
        self._followed: dict[Process, Execution] = {}
        self._threads = [
            threading.Thread(target=self._serve, args=(p,), name=f"worker-{p.device}", daemon=True)
            for p in self._processes
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    def submit(self, store_path: str | Path, condition: JobSpec, owner: str = "") -> str:
        """Asks for a condition on a store and returns the job's id at once.

        A condition that is queued or running is shared; one whose result is in the store is done at once.
        `owner` names who asks (a browser session): owners take turns, so that one who asks for a hundred
        conditions does not keep the others waiting for all of them.

        Raises StoreError when the store cannot be read, JobError after `close`.
        """
        path, asked = str(store_path), time.time()
        key = condition.content_hash(self._runs.fingerprint(path))
        run_id = self._runs.find(path, key)
        with self._wake:
            if self._closing:
                raise JobError("The worker is shut down.", next_step="restart the dashboard.")
            execution = self._shared_execution(path, key, asked) if run_id is None else None
            joined = execution is not None
            if execution is None:
                execution = self._new_execution(path, key, condition, owner, run_id)
            ticket = Ticket(uuid.uuid4().hex[:12], execution, asked, shared=joined)
            self._tickets[ticket.job_id] = ticket
            execution.waiting.add(ticket.job_id)
            self._forget_old()
            self._wake.notify_all()
            return ticket.job_id

    def status(self, job_id: str) -> JobStatus:
        """A snapshot of a job; raises JobError for an id this server does not know."""
        with self._wake:
            return self._snapshot(self._ticket(job_id))

    def jobs(self) -> list[JobStatus]:
        """Snapshots of all remembered jobs, the newest first."""
        with self._wake:
            return [self._snapshot(ticket) for ticket in reversed(self._tickets.values())]

    def cancel(self, job_id: str) -> None:
        """Cancels one submission; the work stops within a batch unless another submission waits for it.

        Work that doesn't listen loses its process, and the next job loads its models anew.
        """
        with self._wake:
            ticket = self._ticket(job_id)
            execution = ticket.execution
            if ticket.cancelled or execution.state not in ("queued", "running"):
                return
            ticket.cancelled = True
            execution.waiting.discard(job_id)
            if execution.state == "queued" and not execution.waiting:
                self._queue.remove(execution)
                self._finish(execution, "cancelled")
            self._wake.notify_all()

    def result(self, job_id: str) -> JobResult:
        """The finished result of a job; raises JobError while or when there is none."""
        with self._wake:
            snapshot = self._snapshot(self._ticket(job_id))
            outcome = self._ticket(job_id).execution.outcome
        if snapshot.state != "done":
            raise JobError("This job has no result.", expected="a finished job", given=snapshot.state)
        if snapshot.run_id is None and outcome is not None and outcome.unsaved is not None:
            return outcome.unsaved
        if snapshot.run_id is None:
            raise JobError("The result was neither stored nor kept.", next_step="run the condition again.")
        return self._runs.open(snapshot.store_path, snapshot.run_id)

    def wait(self, job_id: str, timeout: float | None = None) -> JobStatus:
        """Blocks until a job is over or the time is up; returns its status. For scripts and tests."""
        with self._wake:
            self._wake.wait_for(lambda: self._snapshot(self._ticket(job_id)).over, timeout)
            return self._snapshot(self._ticket(job_id))

    @property
    def device(self) -> str:
        """What the first process runs on from its next job on: "auto" leaves it to the study."""
        return self._wanted[self._processes[0]]

    def move(self, device: str) -> None:
        """The first process runs on another device from the next job on; its loaded models are dropped.

        Raises JobError while anything runs or waits, also what nobody waits for any more.
        """
        with self._wake:
            if self._queue or self._followed:
                raise JobError(
                    "The device can't be changed while experiments run.",
                    given=f"{len(self._queue) + len(self._followed)} running or waiting",
                    next_step="wait for them, or cancel them.",
                )
            self._wanted[self._processes[0]] = device
            self._wake.notify_all()

    def process_ids(self) -> list[int]:
        """Ids of the processes that are running now."""
        return [pid for p in self._processes if (pid := p.pid) is not None]

    def close(self, patience: float = 5.0) -> None:
        """Cancels everything and ends the processes, by force after `patience` seconds. Again: no effect."""
        with self._wake:
            self._closing = True
            while self._queue:
                self._finish(self._queue.pop(), "cancelled")
            for execution in self._active.values():
                execution.waiting.clear()
            self._wake.notify_all()
        until = time.monotonic() + patience
        for thread, process in zip(self._threads, self._processes, strict=True):
            thread.join(timeout=max(0.0, until - time.monotonic()))
            while thread.is_alive():  # its job does not listen; the thread sees the end of the process
                process.kill()
                thread.join(timeout=0.5)
        for process in self._processes:
            process.stop(max(1.0, until - time.monotonic()))
        atexit.unregister(self.close)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _shared_execution(self, path: str, key: str, asked: float) -> Execution | None:
        """Work that answers a submission: running now, done since it was asked, or kept because unsaved."""
        running = self._active.get((path, key))
        if running is not None and running.shareable:
            return running
        recent = self._recent.get((path, key))
        if recent is None or recent.outcome is None or recent.finished is None:
            return None
        return recent if recent.finished >= asked or recent.outcome.unsaved is not None else None

    def _new_execution(
        self, path: str, key: str, condition: JobSpec, owner: str, run_id: str | None
    ) -> Execution:
        execution = Execution(next(self._numbers), key, path, condition, owner)
        if run_id is None:
            self._active[path, key] = execution
            self._queue.append(execution)
        else:
            execution.state, execution.run_id = "done", run_id
            execution.fields["message"] = "Answered from the stored runs."
            execution.finished = time.time()
        return execution

    def _ticket(self, job_id: str) -> Ticket:
        if job_id not in self._tickets:
            raise JobError(
                f"There is no job {job_id!r} on this server.",
                given=job_id,
                next_step="the server may have been restarted; finished results are on the Runs page.",
            )
        return self._tickets[job_id]

    def _snapshot(self, ticket: Ticket) -> JobStatus:
        execution = ticket.execution
        known = execution.fields
        return JobStatus(
            job_id=ticket.job_id,
            key=execution.key,
            store_path=execution.store_path,
            condition=execution.condition,
            state="cancelled" if ticket.cancelled else execution.state,
            done=known.get("done", 0),
            total=known.get("total", 0),
            message=known.get("message", ""),
            device=known.get("device"),
            memory=known.get("memory"),
            partial=known.get("partial"),
            run_id=execution.run_id,
            error=execution.error,
            ahead=self._order().index(execution) if execution.state == "queued" else 0,
            shared=ticket.shared or len(execution.waiting) > 1,
            submitted=ticket.submitted,
            started=execution.started,
            finished=execution.finished,
        )

    def _order(self) -> list[Execution]:
        """The queue in the order in which it will be served: owners in turn, each one's first come first."""
        turns: dict[str, int] = {}
        placed = []
        for execution in self._queue:
            turn = turns[execution.owner] = turns.get(execution.owner, -1) + 1
            placed.append((turn, self._served.get(execution.owner, 0), execution.number, execution))
        return [entry[-1] for entry in sorted(placed, key=lambda entry: entry[:-1])]

    def _forget_old(self) -> None:
        over = [t for t in self._tickets.values() if t.cancelled or t.execution.finished is not None]
        for ticket in over[: max(0, len(self._tickets) - KEPT_TICKETS)]:
            del self._tickets[ticket.job_id]

    def _finish(self, execution: Execution, state: State, error: str | None = None) -> None:
        """Ends an execution; the lock is held."""
        execution.state, execution.error, execution.finished = state, error, time.time()
        place = (execution.store_path, execution.key)
        if self._active.get(place) is execution:
            del self._active[place]
        self._wake.notify_all()

    def _serve(self, process: Process) -> None:
        """One device's bookkeeping thread: takes executions and follows them to their end."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing or self._is_moved(process))
                if self._closing:
                    return
            self._move(process)
            with self._wake:
                if not self._queue or self._is_moved(process):
                    continue
                execution = self._order()[0]
                self._queue.remove(execution)
                self._served[execution.owner] = next(self._services)
                execution.state, execution.started = "running", time.time()
                self._followed[process] = execution
                if not process.alive:
                    execution.fields["message"] = "Starting the worker process."
                self._wake.notify_all()
            try:
                end = self._follow(process, execution)
            except ProcessDied as death:
                state: State = "cancelled" if self._unwanted(execution) else "failed"
                end = EndMessage(execution.number, state, error=str(death) if state == "failed" else None)
            except Exception:
                error_id = uuid.uuid4().hex[:8]
                log.exception("unexpected error %s", error_id)
                text = f"Something unexpected went wrong (error {error_id}). Next: look for it in the log."
                process.stop()
                end = EndMessage(execution.number, "failed", error=text)
            with self._wake:
                del self._followed[process]
                self._take_end(execution, end)

    def _is_moved(self, process: Process) -> bool:
        return process.device != self._wanted[process]

    def _move(self, process: Process) -> None:
        """Ends a process that is to run on another device; only its own thread does."""
        if self._is_moved(process):
            process.stop()
            process.device = self._wanted[process]

    def _take_end(self, execution: Execution, end: EndMessage) -> None:
        execution.outcome = end.outcome
        if end.outcome is not None:
            execution.run_id = end.outcome.run_id
            if end.outcome.partial is not None:
                execution.fields["partial"] = end.outcome.partial
            execution.fields["message"] = end.outcome.message
            self._recent[execution.store_path, execution.key] = execution
            while len(self._recent) > KEPT_RESULTS:
                self._recent.popitem(last=False)
        self._finish(execution, end.state, end.error)

    def _unwanted(self, execution: Execution) -> bool:
        """Whether nobody waits for the end of an execution any more."""
        return self._closing or not execution.waiting

    def _follow(self, process: Process, execution: Execution) -> EndMessage:
        """Runs an execution in its process, on a second one when the first died before taking it up."""
        try:
            return self._follow_once(process, execution)
        except DiedBefore:
            if self._unwanted(execution):
                raise
            return self._follow_once(process, execution)

    def _follow_once(self, process: Process, execution: Execution) -> EndMessage:
        """Sends an execution to its process and passes on what comes back, until it ends."""
        process.send_job(RunMessage(execution.number, execution.store_path, execution.condition))
        until: float | None = None
        while True:
            if until is None and self._unwanted(execution):
                process.cancel(execution.number)
                until = time.monotonic() + self._patience
            elif until is not None and time.monotonic() > until:
                log.warning("job %d does not stop; its process is ended", execution.number)
                process.kill()
                until = float("inf")
            message = process.receive(timeout=0.02)
            if isinstance(message, EndMessage) and message.number == execution.number:
                return message
            if isinstance(message, ProgressMessage) and message.number == execution.number:
                with self._wake:
                    execution.fields.update(message.changes)
                    self._wake.notify_all()
