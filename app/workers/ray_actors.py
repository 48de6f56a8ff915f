"""Workers as Ray actors: Ray restarts one that died and gives it its task again."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.workers.asked import Workers
from app.workers.hands import Ended, Told, Worker, WorkerDied
from app.workers.ray_cluster import cluster
from app.workers.same_folder import check_mark, marked
from engine.errors import JobError
from engine.models.trust import allow_code, code_allowed
from engine.study.roots import allow_roots, roots_for

__all__ = ["RETRIES", "on_ray"]

log = logging.getLogger("patchbay.workers")

RETRIES = 3
"""A task is begun again so often when its actor died."""
LOOK_SECONDS = 1.0
"""So often running tasks are asked how far they are."""
ROOM_SECONDS = 60.0
"""So long a cluster that others use may take to make room."""


class Actor:
    """A worker in a process of Ray's, with what the first process's command line allowed."""

    def __init__(
        self, worker: Worker, seen: tuple[str | Path, str], code: bool, roots: Sequence[Path], gpus: float
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # torch isn't imported yet: an actor has one processor
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves those of the machine to it
        allow_code(code)
        allow_roots(root for root in roots if root.is_dir())
        self._worker, self._seen, self._told = worker, seen, (-1, dict[str, Any]())

    def do(self, number: int, task: Any) -> Any:
        """Does a task."""
        so_far: dict[str, Any] = {}
        self._told = number, so_far
        check_mark(*self._seen)
        return self._worker.do(task, so_far.update)

    def told(self) -> tuple[int, dict[str, Any]]:
        """(number of the last task, all that it told); answered while it runs."""
        number, so_far = self._told
        return number, so_far.copy()


class RayHands:
    """Actors that are there."""

    def __init__(self, ray: Any, actors: Sequence[Any]) -> None:
        self._ray, self._actors, self.count = ray, actors, len(actors)
        self._numbers = itertools.count()

    def each(self, tasks: Sequence[Any], told: Told) -> Iterator[Ended]:
        idle, waiting = list(self._actors), list(tasks)[::-1]
        running: dict[Any, tuple[Any, int, Any]] = {}
        while waiting or running:
            while idle and waiting:
                actor, number, task = idle.pop(), next(self._numbers), waiting.pop()
                running[actor.do.remote(number, task)] = actor, number, task
            ready, _ = self._ray.wait(list(running), timeout=LOOK_SECONDS)
            for number, so_far in self._far([actor for actor, _, _ in running.values()]):
                for task in (task for _, known, task in running.values() if known == number):
                    told(task, **so_far)
            for reference in ready:
                actor, _, task = running.pop(reference)
                idle.append(actor)
                yield self._ended(reference, task)

    def _far(self, actors: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number of its last task, what that told) of each actor that answers at once."""
        asked = [actor.told.options(concurrency_group="asked").remote() for actor in actors]
        for reference in self._ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)[0]:
            with suppress(self._ray.exceptions.RayError):
                number, so_far = self._ray.get(reference)
                if so_far:
                    yield number, so_far

    def _ended(self, reference: Any, task: Any) -> Ended:
        errors = self._ray.exceptions
        try:
            return task, self._ray.get(reference), None
        except errors.RayTaskError as error:
            error.cause.__cause__ = error  # its text is the actor's traceback
            return task, None, error.cause
        except errors.RayError as error:
            log.info("an actor died: %s", error)
            return task, None, _died(error)


@contextmanager
def on_ray(asked: Workers, worker: Worker, store: str | Path, most: int) -> Iterator[RayHands]:
    """Actors with a worker each, until the block is left, however it is: they are ended then.

    Raises:
        JobError: as `app.workers.ray_cluster.cluster`; or there is no room for the actors.
        StoreError: nothing can be written to the store.
    """
    with cluster(asked.address, asked.count) as ray, marked(store) as seen:
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        room = ray.cluster_resources()
        gpus = asked.gpus if asked.gpus is not None else float(room.get("GPU", 0) >= 1)
        count = _count(asked, room, gpus, sum(node["Alive"] for node in ray.nodes()), most)
        group = placement_group([{"CPU": 1, **({"GPU": gpus} if gpus else {})}] * count)
        actors: list[Any] = []
        try:
            if not group.wait(ROOM_SECONDS):
                raise _no_room(count, gpus, ray.available_resources(), "free now")
            kind = ray.remote(concurrency_groups={"asked": 1})(Actor)
            for place in range(count):
                where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place)
                options = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": where}
                again = {"max_restarts": -1, "max_task_retries": RETRIES}
                made = kind.options(**options, **again).remote(
                    worker, seen, code_allowed(), roots_for(None), gpus
                )
                actors.append(made)
            yield RayHands(ray, actors)
        finally:
            for actor in actors:
                ray.kill(actor)
            remove_placement_group(group)


def _count(asked: Workers, room: Mapping[str, float], gpus: float, machines: int, most: int) -> int:
    """Actors to be made; JobError where the whole cluster has no room for them."""
    fitting = int(room.get("GPU", 0) / gpus + 1e-9) if gpus else machines
    count = max(1, min(fitting if asked.count is None else asked.count, most))
    if count > room.get("CPU", 0) or count * gpus > room.get("GPU", 0):
        raise _no_room(count, gpus, room, "in all")
    return count


def _no_room(count: int, gpus: float, room: Mapping[str, float], which: str) -> JobError:
    return JobError(
        f"The Ray cluster has no room for {count} workers.",
        expected=f"{count} CPUs" + (f" and {count * gpus:g} GPUs, {gpus:g} for each" if gpus else ""),
        given=f"{room.get('CPU', 0):g} CPUs and {room.get('GPU', 0):g} GPUs {which}",
        next_step="take fewer --workers or --gpus-per-worker, or a larger cluster.",
    )


def _died(error: Exception) -> WorkerDied:
    return WorkerDied(
        f"The worker died at this, and so did those that began it again ({RETRIES} times).",
        expected="a worker that lives, with memory for the models on its machine",
        given=" ".join(str(error).split())[:400],
        next_step="run the same command again: it goes on where it stopped; with fewer workers a machine, or "
        "smaller batches, if memory ran out.",
    )
