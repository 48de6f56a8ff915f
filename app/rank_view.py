"""Rank k × α as a page needs it: an experiment from the selection, a stored result as panels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import controls, rank_panels
from app.jobs import JobResult
from app.panel import Panel
from app.rank_panels import BASES
from app.resources import Opened
from app.selection import Selection, pair_changes
from app.transport import METHOD_NAMES
from engine.experiment import Where
from engine.experiments.maps import MapSpec
from engine.experiments.rank import ALPHAS, RankSweep

PAGE = "rank"
WHY_EMPTY = (
    "No one-token position was captured",
    "A patch replaces the activation of one token, and this store has only averages. Add `last_content` or "
    "`decision` to `capture.positions` of the study file and run precompute.py again.",
)
ALPHA_HELP = "Every sweep runs " + ", ".join(f"{a:g}" for a in ALPHAS) + "; the nearest one is shown."


def map_of(selection: Selection) -> MapSpec:
    """The transport map of a selection."""
    return MapSpec(
        method=selection.method,
        rank=selection.rank,
        shrinkage=selection.shrink,
        penalty=10.0**selection.lam if selection.lam_mode == "set" else None,
        directions=selection.q,
        clusters=selection.clusters,
    )


def pair_of(selection: Selection) -> tuple[str, str]:
    """(target, source) of a selection."""
    return (selection.a, selection.b) if selection.target == "a" else (selection.b, selection.a)


def bases(selection: Selection) -> tuple[str, ...]:
    """Bases that the selected map has."""
    ranked = selection.method == "ScaledProcrustes" and selection.clusters == 1
    return ("map", "difference") if ranked else ("difference",)


def experiment_of(selection: Selection) -> RankSweep:
    """The sweep a selection describes; the differences' basis where the map has none of its own.

    Raises:
        PatchError: the selection's position is not one token.
    """
    target, source = pair_of(selection)
    offered = bases(selection)
    return RankSweep(
        target=target,
        source=source,
        component=selection.site,  # type: ignore[arg-type]
        layer=selection.layer,
        position=selection.position,
        read_at=selection.read_at,  # type: ignore[arg-type]
        map=map_of(selection),
        scale=selection.amplitude,  # type: ignore[arg-type]
        raw_alpha=selection.raw_alpha,  # type: ignore[arg-type]
        basis=selection.basis if selection.basis in offered else offered[0],  # type: ignore[arg-type]
        where=Where(
            language=None if selection.language == "all" else selection.language,
            category=None if selection.category == "all" else selection.category,
        ),
    )


def place_changes(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes that make a condition's models and site the selected ones."""
    return {
        **pair_changes(condition, selection),
        "site": condition["component"],
        "layer": condition["layer"],
        "position": condition["position"],
        "read_at": condition["read_at"],
    }


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    spec, where = MapSpec.model_validate(condition["map"]), condition.get("where") or {}
    return {
        **place_changes(condition, selection),
        "part": "rank",
        "method": spec.method,
        "rank": spec.rank,
        "shrink": spec.shrinkage,
        "lam_mode": "auto" if spec.penalty is None else "set",
        "lam": selection.lam if spec.penalty is None else math.log10(spec.penalty),
        "q": spec.directions,
        "clusters": spec.clusters,
        "amplitude": condition["scale"],
        "raw_alpha": condition["raw_alpha"],
        "basis": condition["basis"],
        "language": where.get("language") or "all",
        "category": where.get("category") or "all",
    }


def not_run(selection: Selection) -> tuple[str, str]:
    """Empty state: what a click will do."""
    target, source = pair_of(selection)
    return (
        "This sweep has not been run",
        f"**Run** puts {source}'s activation at {selection.site} of block {selection.layer} into {target}, "
        f"carried over by {map_of(selection).describe()}: at every rank, at every amplitude, and only inside "
        "k directions, with random directions beside them. One sweep does all of it.",
    )


def rank_controls() -> None:
    """Map, basis, and what α does."""
    left, right = st.columns(2)
    with left:
        controls.choose("method", "Transport map", names=METHOD_NAMES.__getitem__)
    with right:
        controls.slide("alpha", "Amplitude α shown", step=0.25, help=ALPHA_HELP)
    with controls.row():
        controls.switch("basis", "Directions swapped", BASES, bases(controls.current()))
        controls.switch("amplitude", "α scales", {"vector": "the vector", "deviation": "deviation"})
        controls.switch("raw_alpha", "Moment-matched patch", {"fixed": "at α = 1", "scaled": "at the same α"})
        controls.filter_controls(None)


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of a stored sweep, at the amplitude that was run nearest to the selected one."""
    alpha = min(result.condition["alphas"], key=lambda a: (abs(a - selection.alpha), a))
    return rank_panels.all_panels(opened, result, alpha)
