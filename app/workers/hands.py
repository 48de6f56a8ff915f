"""One contract for work in this process and on Ray's actors: tasks in, what came of each out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from engine.errors import JobError

__all__ = ["Ended", "Hands", "Here", "Told", "Worker", "WorkerDied"]

Told = Callable[..., None]
"""Called as (task, name=value, …) with how far a task is; the same may be told again."""
Ended = tuple[Any, Any, Exception | None]
"""(task, what came of it, None), or (task, None, what went wrong)."""


class WorkerDied(JobError):
    """A task that no worker survived."""


class Worker(Protocol):
    """Does tasks one after the other, and keeps what it loaded for the next one.

    It is pickled before its first task, so it loads nothing before.
    """

    def do(self, task: Any, tell: Callable[..., None]) -> Any:
        """Does a task; `tell(name=value, …)` says how far it is. The same task again gives the same."""
        ...


class Hands(Protocol):
    """Workers that are there."""

    count: int

    def each(self, tasks: Sequence[Any], told: Told) -> Iterator[Ended]:
        """Does every task, begun in this order; one that fails keeps no other one from being done."""
        ...


class Here:
    """One worker, in this process."""

    count = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def each(self, tasks: Sequence[Any], told: Told) -> Iterator[Ended]:
        for task in tasks:
            yield self._ended(task, told)

    def _ended(self, task: Any, told: Told) -> Ended:
        try:
            return task, self._worker.do(task, lambda **changes: told(task, **changes)), None
        except Exception as error:
            return task, None, error
