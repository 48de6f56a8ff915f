"""Capture on several processes or accelerators through Ray (the extra `ray`).

Units are whole shards, so workers never write the same file, and a unit's batches depend on the lengths
alone: on the same kind of device, the store is the one that a single process writes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import CaptureError
from engine.models.trust import code_allowed
from engine.study.study import Study
from store.places.client import shown
from store.sources import as_place

__all__ = ["capture_in_parallel"]


class Capturer:
    """One worker: keeps the last model loaded and commits the units it is given."""

    def __init__(self, study: Study, path: str, code: bool) -> None:
        import torch

        from app.build.answers import stored_answers
        from app.build.prepare import Prepared
        from engine.models.trust import allow_code
        from store.writer import StoreWriter

        torch.set_num_threads(1)
        allow_code(code)
        self.prepared = Prepared.of(study, stored_answers(study, Path(path)))
        plan = self.prepared.store_plan()
        self.writer = StoreWriter.create_or_resume(Path(path), plan, study.to_json(), study.fingerprint())
        self.model: Any = None

    def capture(self, name: str, unit: int) -> int:
        """Captures and commits one unit of one model; returns the number of its prompts."""
        from app.build.capture import capture_into
        from engine.models.loading import load

        if self.model is None or self.model.name != name:
            self.model = None
            self.model = load(self.prepared.study.models[name], name)
        capture_into(self.prepared, self.writer, self.model, unit, print)
        return len(self.writer.plan.prompts_of(unit))


def check_ray(workers: int, path: str | Path) -> None:
    """CaptureError when Ray is not installed, or for a URL, which one writer writes at a time."""
    if isinstance(as_place(path), str):
        raise CaptureError(
            "Several workers can't write to an object store.",
            expected="a local folder, or one worker",
            given=f"--workers {workers} for {shown(str(path))}",
            next_step="leave --workers out, or write to a local folder and copy it.",
        )
    if importlib.util.find_spec("ray") is None:
        raise CaptureError(
            "Capturing with several workers needs Ray.",
            expected="the extra 'ray'",
            given=f"--workers {workers}",
            next_step="pip install -e '.[ray]', or leave --workers out.",
        )


def capture_in_parallel(
    study: Study, path: str | Path, pending: dict[str, list[int]], workers: int
) -> Iterator[int]:
    """Captures the pending units on `workers` Ray actors; yields the prompts of each unit done.

    Each actor gets one processor, and one accelerator where Ray finds any.

    Raises:
        CaptureError: Ray is not installed, or a worker died.
    """
    check_ray(workers, path)
    import ray
    from ray.util import ActorPool

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        share = 1 if ray.cluster_resources().get("GPU", 0) else 0
        remote = ray.remote(num_cpus=1, num_gpus=share)(Capturer)
        pool = ActorPool([remote.remote(study, str(path), code_allowed()) for _ in range(workers)])
        tasks = [(name, unit) for name, units in pending.items() for unit in units]
        yield from pool.map_unordered(lambda actor, task: actor.capture.remote(*task), tasks)
    except ray.exceptions.RayError as error:
        raise CaptureError(
            "A capture worker failed.",
            given=str(error).strip().splitlines()[-1],
            next_step="run the same command again: it goes on where it stopped.",
        ) from error
    finally:
        ray.shutdown()
