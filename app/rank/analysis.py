"""Rank sweeps as an analysis."""

from __future__ import annotations

from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind
from app.rank import view
from app.rank.fields import RankFields

TITLE = "Rank k × α"
TERMS = (
    Term(
        "rank k",
        "truncated: the map of rank k; projector: only the part of (mapped − own) inside k directions is "
        "swapped. The smallest sufficient k is within one standard error of the best on the train split.",
        "own + B_k B_kᵀ (mapped − own)",
    ),
)

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
    headline=first_of(SWEEPS),
    fields=RankFields,
)
