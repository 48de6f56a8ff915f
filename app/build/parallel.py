"""Capture by several workers at once (the extra `ray`).

Units are whole shards, so workers never write the same file, and a unit's batches depend on the lengths
alone: on the same kind of device, the store is the one that a single process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from app.workers.asked import Workers
from app.workers.hands import WorkerDied
from app.workers.hire import hire
from app.workers.ray_cluster import check_ray
from engine.errors import CaptureError
from engine.study.study import Study
from store.places.client import shown
from store.sources import as_place

if TYPE_CHECKING:
    from app.build.prepare import Prepared
    from engine.models.loading import LoadedModel
    from store.writer import StoreWriter

__all__ = ["capture_in_parallel", "check_workers"]


@dataclass
class Capturer:
    """Commits the units that it is given; keeps the last model loaded (`app.workers.hands.Worker`)."""

    study: Study
    path: Path
    kept: tuple[Prepared, StoreWriter] | None = field(default=None, init=False)
    model: LoadedModel | None = field(default=None, init=False)

    def do(self, task: tuple[str, int], tell: Callable[..., None]) -> int:
        """Captures and commits one unit of one model; returns the number of its prompts."""
        from app.build.capture import capture_into
        from engine.models.loading import load

        name, unit = task
        self.kept = prepared, writer = self.kept or self._opened()
        if self.model is None or self.model.name != name:
            self.model = None
            self.model = load(self.study.models[name], name)
        capture_into(prepared, writer, self.model, unit, lambda text: tell(message=text))
        return len(writer.plan.prompts_of(unit))

    def _opened(self) -> tuple[Prepared, StoreWriter]:
        from app.build.answers import stored_answers
        from app.build.prepare import Prepared
        from store.writer import StoreWriter

        prepared = Prepared.of(self.study, stored_answers(self.study, self.path))
        study = self.study.to_json(), self.study.fingerprint()
        return prepared, StoreWriter.create_or_resume(self.path, prepared.store_plan(), *study)


def check_workers(workers: Workers, path: str | Path) -> None:
    """Before anything is computed.

    Raises:
        CaptureError: for a URL, which one writer writes at a time.
        JobError: Ray isn't installed, or nothing answers at the cluster's address.
    """
    if workers.engine == "local":
        return
    if isinstance(as_place(path), str):
        raise CaptureError(
            "Several workers can't write to an object store.",
            expected="a local folder, or one process",
            given=f"--engine ray for {shown(str(path))}",
            next_step="leave --engine and --workers out, or write to a local folder and copy it.",
        )
    check_ray(workers.address)


def capture_in_parallel(
    study: Study,
    path: str | Path,
    pending: Mapping[str, Sequence[int]],
    workers: Workers,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> None:
    """Captures the pending units.

    Args:
        advance: called with the prompts of each unit done.
        say: told of batches that did not fit into memory.

    Raises:
        PatchbayError: there are no such workers; a model can't be loaded by them.
        CaptureError: units that no worker survived; all others are there.
    """
    folder, said, lost = Path(path).absolute(), set[str](), list[tuple[str, WorkerDied]]()
    tasks = [(name, unit) for name, units in pending.items() for unit in units]

    def told(_task: tuple[str, int], message: str) -> None:
        if message not in said:
            said.add(message)
            say(message)

    with hire(workers, Capturer(study, folder), folder, len(tasks)) as there:
        for (name, unit), prompts, error in there.each(tasks, told):
            if isinstance(error, WorkerDied):
                lost.append((f"{name}, unit {unit}", error))
            elif error is not None:
                raise error
            else:
                advance(prompts)
    if lost:
        raise CaptureError(
            f"{len(lost)} of {len(tasks)} units were not captured: their workers died, again and again.",
            given=f"{lost[0][0]}: {lost[0][1].given}",
            next_step="run the same command again: it goes on where it stopped; with fewer workers, "
            "or a smaller batch_tokens, if memory ran out.",
        ) from lost[0][1]
