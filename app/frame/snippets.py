"""Notebook lines that open the stored run which a panel shows; tests run them and compare the tables."""

from __future__ import annotations

from app.frame.opened import Opened
from app.live.jobs import JobResult
from engine.kinds import experiment_from_json


def read_run(opened: Opened, result: JobResult, *more: str) -> str:
    """Lines that open the result as `run`, followed by `more`, which end with `table`."""
    experiment = experiment_from_json(result.condition)
    asked = {"job": experiment.job, **experiment.model_dump(mode="json", exclude_defaults=True)}
    lines = (
        *(("import polars as pl", "") if any("pl." in line for line in more) else ()),
        "from engine.kinds import experiment_from_json",
        "from store.reader import Store",
        "from store.runs import RunLog",
        "",
        f"store, runs = Store({opened.path!r}), RunLog({opened.path!r})",
        f"experiment = experiment_from_json({asked!r})",
        "run = runs.open(runs.find(experiment.content_hash(store.fingerprint)))",
    )
    return "\n".join((*lines, *more))
