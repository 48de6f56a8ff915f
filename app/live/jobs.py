"""What pages see of a live job, and what the worker process and the server say to each other.

No Streamlit and no torch here: both sides import it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import polars as pl

State = Literal["queued", "running", "done", "cancelled", "failed"]


class JobSpec(Protocol):
    """A unit of live work: picklable, described by one line, identified by its content."""

    def content_hash(self, fingerprint: str) -> str: ...
    def describe(self) -> str: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class JobStatus:
    """A job as one browser session sees it; a snapshot, never changed afterwards.

    Attributes:
        job_id: this submission's own id; two submissions of one condition have two ids and share the work.
        key: content hash of the condition in its study.
        done, total: units of work (batches); total is 0 until it is known.
        message: what is going on, or what a reader should know ("the batch was halved").
        device: where it runs, as the worker process reports it ("cpu", "cuda:0").
        memory: bytes in use on its GPUs and bytes there, at its end; None on others.
        partial: the result so far, as plain JSON types; None until there is something.
        run_id: the stored run, once done; None when it could not be saved (then `message` says why).
        error: what went wrong, for a person; set when failed.
        ahead: jobs that run before this one, while queued.
        shared: whether another submission asked for the same condition and gets the same result.
    """

    job_id: str
    key: str
    store_path: str
    condition: Any
    state: State
    done: int = 0
    total: int = 0
    message: str = ""
    device: str | None = None
    memory: tuple[int, int] | None = None
    partial: dict[str, Any] | None = None
    run_id: str | None = None
    error: str | None = None
    ahead: int = 0
    shared: bool = False
    submitted: float = 0.0
    started: float | None = None
    finished: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "cancelled", "failed")

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(self.done / self.total, 1.0) if self.total else 0.0


@dataclass(frozen=True, eq=False)
class JobResult:
    """A finished job: the condition and summary as plain JSON types, and its tables by name.

    Two are the same only if they are one: what is computed from a result is kept for it.
    """

    condition: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, pl.DataFrame]

    @property
    def table(self) -> pl.DataFrame:
        """The main table."""
        return self.tables["table"]

    @property
    def models(self) -> tuple[str, str]:
        """(target, source) of an experiment that has both."""
        return self.condition["target"], self.condition["source"]


@dataclass(frozen=True)
class Outcome:
    """What a runner hands back. `unsaved` carries the result when it could not be stored."""

    run_id: str | None
    partial: dict[str, Any] | None = None
    message: str = ""
    unsaved: JobResult | None = None


class Runner(Protocol):
    """Runs jobs inside the worker process, one at a time, keeping what it loaded."""

    def run(
        self, store_path: str, condition: Any, report: Report, should_stop: Callable[[], bool]
    ) -> Outcome: ...


class Report(Protocol):
    """Tells the server how far a job is; only what is given changes."""

    def __call__(
        self,
        *,
        done: int | None = None,
        total: int | None = None,
        message: str | None = None,
        device: str | None = None,
        memory: tuple[int, int] | None = None,
        partial: dict[str, Any] | None = None,
    ) -> None: ...


# Messages on the connection. Every message names the execution it belongs to.


@dataclass(frozen=True)
class RunMessage:
    """Server to process: run this."""

    number: int
    store_path: str
    condition: Any


@dataclass(frozen=True)
class CancelMessage:
    """Server to process: stop execution `number` at the next batch."""

    number: int


@dataclass(frozen=True)
class ExitMessage:
    """Server to process: stop what runs, then exit."""


@dataclass(frozen=True)
class ProgressMessage:
    """Process to server: the fields of an execution that changed."""

    number: int
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EndMessage:
    """Process to server: the execution is over."""

    number: int
    state: State
    outcome: Outcome | None = None
    error: str | None = None


def death_reason(returncode: int | None) -> str:
    """Says in words how a process ended, from its return code."""
    if returncode is None:
        return "closed its connection"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        hint = ", which is often the system running out of memory" if -returncode == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"
    return f"exited with status {returncode}"
