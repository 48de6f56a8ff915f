"""Rank sweeps as an analysis."""

from __future__ import annotations

from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind
from app.frame.opened import Opened
from app.frame.selection import SITES, Selection
from app.rank import view
from app.rank.fields import RankFields
from app.steering import take
from app.steering import view as steering

TITLE = "Rank k × α"
TERMS = (
    Term(
        "rank k",
        "truncated: the map of rank k; projector: only the part of (mapped − own) inside k directions is "
        "swapped. The smallest sufficient k is within one standard error of the best on the train split.",
        "own + B_k B_kᵀ (mapped − own)",
    ),
)


def settings(opened: Opened) -> None:
    """Which part of the page, the place, and what that part needs."""
    parts = {"rank": "Rank k × α", "steering": "Steering and ablation"}
    part = controls.switch("part", "What to look at", parts)
    controls.across(
        controls.direction,
        lambda: controls.choose("site", "Site", only=[site for site in SITES if site != "head_out"]),
        lambda: controls.choose("position", "Patched token", only=opened.facts.tokens),
        lambda: controls.slide("layer", "Block ℓ"),
    )
    if part == "rank":
        view.rank_controls()
    else:
        steering.steering_controls(opened)


def show(opened: Opened, selection: Selection) -> None:
    """The sweep or the steering that is selected: what runs it, and its stored result."""
    part = view if RankFields.of(selection).part == "rank" else steering
    found = live_view.stored(opened, part.experiment_of(selection))
    missing = [one for one in part.experiments(selection) if live_view.stored(opened, one) is None]
    live_view.run_button(opened, missing, done=not missing)
    live_view.watch()
    if found is None and not live_view.active():
        components.empty(*part.not_run(selection))
    if found is not None:
        components.show_all(opened, part.run_panels(opened, found, selection))
        if part is steering:
            take.show(opened, found)
        live_view.notes(found)


SWEEPS = Kind(
    "rank",
    TITLE,
    "How many dimensions carry the effect of a mapped patch?",
    {"rank": 3.2},
    view.PAGE,
    view.selection_of,
    view.run_panels,
)
RANK = Analysis(
    "rank",
    TITLE,
    "How many dimensions carry what one model does to the other, and what does a single direction do?",
    section="Live",
    icon="grid_on",
    answers=(
        "how many dimensions carry it? rank paths, swaps inside k directions; steering and ablation with "
        "their side effect"
    ),
    null="random bases and directions; one-standard-error rule",
    kinds=(SWEEPS,),
    planned=(Planned("rank", TITLE, lambda _opened, at: [view.experiment_of(at)], deepest=True),),
    chapters=(of_kind(SWEEPS),),
    terms=TERMS,
    empty=live_view.no_token,
    controls=settings,
    body=show,
    headline=first_of(SWEEPS),
    fields=RankFields,
)
