"""What the worker remembers of its work: executions, and the submissions that wait for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.live.jobs import JobSpec, Outcome, State

__all__ = ["Execution", "Ticket"]


@dataclass
class Execution:
    """One piece of work; several tickets may wait for it. Changed only under the worker's lock."""

    number: int
    key: str
    store_path: str
    condition: JobSpec
    owner: str = ""
    state: State = "queued"
    fields: dict[str, Any] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    outcome: Outcome | None = None
    run_id: str | None = None
    error: str | None = None
    started: float | None = None
    finished: float | None = None

    @property
    def shareable(self) -> bool:
        """Whether a new submission of the same condition may join."""
        return self.state in ("queued", "running") and bool(self.waiting)


@dataclass
class Ticket:
    """One submission, by whom it is known to a session."""

    job_id: str
    execution: Execution
    submitted: float
    cancelled: bool = False
    shared: bool = False
