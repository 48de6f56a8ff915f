"""Subspace scores as an analysis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, Headline, Kind, Planned, Term, pair_of
from app.frame.chapters import first_of, of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.frame.stored import Asked
from app.subspaces import chapter, view
from app.subspaces.fields import SubspaceFields
from app.weights import tables as weights
from engine.subspaces.spec import SubspaceScores

TITLE = "Subspace scores"
QUESTION = "Which named subspace of the stream does a weight change write into, and is that more than chance?"
TERMS = (
    Term(
        "R_act, R_w",
        "How much a k-dimensional subspace of the stream holds, over what a random one of its rank would: of "
        "D, what ±ΔW does to the stream (R_act), or of the weight change itself (R_w; combined: o_proj and "
        "down_proj at unit norm). 1 is chance. Candidates are named without looking at ΔW; ceilings look.",
        "tr(BᵀSB) / (r/d);  S = mean of d̂d̂ᵀ over D's unit rows, or ΔWΔWᵀ/‖ΔW‖²;  D = stream(α=+1) − "
        "stream(α=−1)",
    ),
    Term(
        "joint, gap, specificity",
        "One score of both, how far they differ, and R_act when the leading directions of the stream without "
        "persona are taken out. Means over the blocks that ΔW changes.",
        "√(R_act · R_w);  log₂ R_act − log₂ R_w",
    ),
)


def planned(opened: Opened, selection: Selection) -> list[SubspaceScores]:
    """All candidates and weight changes, where the store has what they need."""
    return [view.experiment_of(opened, selection)] if view.can_score(opened) else []


def show(opened: Opened, selection: Selection) -> None:
    """What runs the scores, and the stored ones: of another run alike where the selected one isn't stored."""
    wanted = view.experiment_of(opened, selection)
    found = view.stored(opened, wanted, selection.run)
    if found is None:
        live_view.rejoin(opened, wanted)
    done = view.is_stored(opened, wanted)
    live_view.run_button(opened, [wanted], "Score all candidates", done=done)
    live_view.watch()
    if found is None and not live_view.active():
        components.empty(*view.not_run(opened, wanted))
    if found is not None:
        view.score_controls(found)
        view.show(opened, view.shown_of(opened, found, selection))
        live_view.notes(found)


SCORES = Kind(
    "subspaces",
    TITLE,
    QUESTION,
    {view.JOB: None},
    view.PAGE,
    view.selection_of,
    view.run_panels,
)


def headline(opened: Opened, selection: Selection) -> Headline:
    """The first panel of the newest stored run that scores the pair's own weight change."""
    name = weights.between(opened, selection.a, selection.b)

    def of_pair(found: Sequence[Asked]) -> list[Asked]:
        return [run for run in found if name in run[1]["deltas"]]

    return first_of(SCORES, of_pair)(opened, dataclasses.replace(selection, delta=name or ""))


SUBSPACES = Analysis(
    "subspaces",
    TITLE,
    QUESTION,
    pair=False,
    tuned=pair_of,
    section="Weights",
    icon="join_inner",
    answers=(
        "which named subspace of the stream does a weight change write into, and is that more than chance? "
        "44 candidates and one's own, any rank, per block"
    ),
    null=(
        "random subspaces by exact moments, Holm over candidates × blocks; ceilings; spread over weight "
        "changes"
    ),
    kinds=(SCORES,),
    planned=(Planned("subspaces", TITLE, planned),),
    chapters=(of_kind(SCORES, chapter.shown, chapter.empty),),
    terms=TERMS,
    headline=headline,
    controls=view.broad_control,
    body=show,
    fields=SubspaceFields,
)
