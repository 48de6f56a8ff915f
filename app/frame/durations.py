"""How long experiments take, from earlier ones: words beside a button. Pure functions, no Streamlit."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from app.frame.analysis import usual_seconds
from engine.lab.experiment import Experiment

Runs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""(condition, summary with `seconds` where it is known) of stored runs."""

LOADING = 2.0
"""Seconds until the demo's two models are loaded, once for all experiments of a click."""


def seconds(wanted: Sequence[Experiment], runs: Runs) -> float | None:
    """What the experiments would take together, each as long as the median stored run of its kind; None where
    one is of a kind of which no stored run tells."""
    known: dict[str, list[float]] = {}
    for condition, summary in runs:
        if summary.get("seconds") is not None:
            known.setdefault(condition.get("job", "patch"), []).append(float(summary["seconds"]))
    if not wanted or any(one.job not in known for one in wanted):
        return None
    return sum(statistics.median(known[one.job]) for one in wanted)


def told(wanted: Sequence[Experiment], runs: Runs) -> str:
    """How long a click will take, by earlier runs or else the demo's; nothing where neither is known."""
    own = seconds(wanted, runs)
    if own is not None:
        return f"About {written(own)}, judged by earlier runs of this kind in this store."
    usual = usual_seconds()
    if not wanted or any(one.job not in usual for one in wanted):
        return ""
    demo = written(LOADING + sum(usual[one.job] for one in wanted))
    return f"About {demo} on the demo and one CPU core; more with a larger model or more prompts."


def written(value: float) -> str:
    """Seconds, minutes or hours in whole numbers."""
    if value < 90:
        return f"{max(round(value), 1)} s"
    return f"{round(value / 60)} min" if value < 5400 else f"{value / 3600:.1f} h"
