"""How long experiments take, from earlier ones: words beside a button. Pure functions, no Streamlit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.frame.analysis import usual_seconds
from engine.lab.experiment import Experiment

Runs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""(condition, summary with `seconds` where it is known) of stored runs."""

Slower = Callable[[Mapping[str, Any]], float]

NOTICED = 1.5
"""From so many times longer on it is said."""
LOADING = 2.0
"""Seconds until the demo's two models are loaded, once for all experiments of a click."""


def _alike(_condition: Mapping[str, Any]) -> float:
    return 1.0


def seconds(wanted: Sequence[Experiment], runs: Runs, slower: Slower = _alike) -> float | None:
    """What the experiments would take together, each as long as the median stored run of its kind; None where
    one is of a kind of which no stored run tells.

    Args:
        slower: condition -> how many times longer than others of its kind it takes by itself.
    """
    known: dict[str, list[float]] = {}
    for condition, summary in runs:
        if summary.get("seconds") is not None:
            took = float(summary["seconds"]) / slower(condition)
            known.setdefault(condition.get("job", "patch"), []).append(took)
    if not wanted or any(one.job not in known for one in wanted):
        return None
    return sum(statistics.median(known[one.job]) * slower(one.to_json()) for one in wanted)


def told(wanted: Sequence[Experiment], runs: Runs, slower: Slower = _alike) -> str:
    """How long a click will take, by earlier runs or else the demo's; nothing where neither is known."""
    own = seconds(wanted, runs, slower)
    if own is not None:
        return f"About {written(own)}, judged by earlier runs of this kind in this store."
    usual = usual_seconds()
    if not wanted or any(one.job not in usual for one in wanted):
        return ""
    factors = [slower(one.to_json()) for one in wanted]
    took = sum(usual[one.job] * factor for one, factor in zip(wanted, factors, strict=True))
    if max(factors) < NOTICED:
        about = f"About {written(LOADING + took)} on the demo and one CPU core"
        return f"{about}; more with a larger model or more prompts."
    return (
        f"About {written(LOADING + took)}: what the demo takes on one CPU core, times {max(factors):.0f}, "
        "since this model's patches run whole prompts again. More with a larger model or more prompts."
    )


def written(value: float) -> str:
    """Seconds, minutes or hours in whole numbers."""
    if value < 90:
        return f"{max(round(value), 1)} s"
    return f"{round(value / 60)} min" if value < 5400 else f"{value / 3600:.1f} h"
