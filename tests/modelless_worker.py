"""A runner that needs no model, a run index without a store, and conditions for them."""

from __future__ import annotations

import polars as pl

from app.live.jobs import JobResult
from engine.patching.spec import Condition

RUNNER = '''
import os, signal, time
from app.live.jobs import Outcome, JobResult
from engine.errors import JobError, PatchError
import polars as pl

class FakeRunner:
    """Does what the condition's category says: "steps=20", "fail", "boom", "oom", "kill", "deaf"."""
    def __init__(self, device, max_models):
        self.device = device

    def run(self, store_path, condition, report, should_stop):
        order, _, value = (condition.where.category or "steps=1").partition("=")
        with open(os.path.join(store_path, "calls.txt"), "a") as calls:
            calls.write(f"{condition.layer} {os.getpid()}\\n")
        if order == "fail":
            raise PatchError("The widths differ.", expected=8, given=16)
        if order == "boom":
            raise ValueError("secret detail")
        if order == "oom":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if order == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "deaf":
            time.sleep(600)
        if order == "unsaved":
            tables = {"table": pl.DataFrame({"id": ["a"]})}
            result = JobResult({"layer": condition.layer}, {"kl": 1.0}, tables)
            return Outcome(None, message="not saved: the folder is read-only", unsaved=result)
        total = int(value)
        for step in range(total):
            if should_stop():
                raise JobError("cancelled")
            if total > 1:
                time.sleep(0.02)
            report(done=step + 1, total=total, device=self.device, partial={"layer": condition.layer})
        return Outcome(f"run-{condition.layer}", partial={"layer": condition.layer}, message="finished")
'''


class MemoryRuns:
    """A run index without a store; `stored` maps (path, key) to a run id."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], str] = {}

    def fingerprint(self, store_path: str) -> str:
        return f"fingerprint of {store_path}"

    def find(self, store_path: str, key: str) -> str | None:
        return self.stored.get((store_path, key))

    def open(self, store_path: str, run_id: str) -> JobResult:
        return JobResult({"run": run_id}, {}, {"table": pl.DataFrame()})


def condition(layer: int, order: str = "steps=1") -> Condition:
    return Condition(
        target="tuned", source="base", component="resid_post", layer=layer, where={"category": order}
    )
