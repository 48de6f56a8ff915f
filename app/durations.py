"""How long experiments take, from earlier ones: words beside a button. Pure functions, no Streamlit."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment import Experiment

Runs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""(condition, summary with `seconds` where it is known) of stored runs."""

DEMO = {
    "patch": 1.0,
    "mapped": 0.7,
    "heads": 0.8,
    "head_map": 1.0,
    "rank": 3.2,
    "steering": 1.5,
    "behaviour": 1.0,
    "z_patching": 4.0,
    "weight_steering": 88.0,
}
"""Seconds of one experiment of each kind on the demo, as its page first asks for it: process CPU time of one
thread on a 2-core Xeon virtual machine."""
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
    if not wanted or any(one.job not in DEMO for one in wanted):
        return ""
    demo = written(LOADING + sum(DEMO[one.job] for one in wanted))
    return f"About {demo} on the demo and one CPU core; more with a larger model or more prompts."


def written(value: float) -> str:
    """Seconds, minutes or hours in whole numbers."""
    if value < 90:
        return f"{max(round(value), 1)} s"
    return f"{round(value / 60)} min" if value < 5400 else f"{value / 3600:.1f} h"
