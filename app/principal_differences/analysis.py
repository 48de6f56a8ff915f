"""Principal differences as an analysis."""

from __future__ import annotations

from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter, Term, pair_of
from app.frame.chapters import collect
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.principal_differences import panels, slices, view
from app.principal_differences.fields import PrincipalFields

TITLE = "Principal differences"
QUESTION = "In how many directions, and in which, does one model's stream differ from the other's?"
ONE = (
    "There is one model",
    "A model has no difference from itself. Choose two models, a base and its fine-tune.",
)


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why a store has nothing to show."""
    found = components.no_position(opened)
    if found is None and not set(slices.SITES) & set(opened.facts.sites):
        return (
            "No site of the stream's width is stored",
            "Capture `resid`, `attn_out` or `mlp_out` in the study.",
        )
    return ONE if found is None and len(opened.facts.models) < 2 else found


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """The components of the selected place, and all places."""
    if selection.a == selection.b:
        return ONE[1]
    return collect(panels.makers(opened, selection))


def body(opened: Opened, selection: Selection) -> None:
    """The page."""
    if selection.a == selection.b:
        components.empty(*ONE)
        return
    view.show(opened, selection)


PRINCIPAL_DIFFERENCES = Analysis(
    "principal_differences",
    TITLE,
    QUESTION,
    section="Compare",
    icon="stacked_line_chart",
    answers=(
        "in how many directions do two models' streams differ, on which prompts, saying what, written by "
        "which weights? components of B − A, block × position"
    ),
    null="sign flips of units in every coordinate, all places at once; rounding; held-out prompts",
    chapters=(Chapter("principal_differences", TITLE, QUESTION, chapter, deepest=True),),
    terms=(
        Term(
            "principal differences",
            "Components of what model B's activations have that A's have not on the same train prompts, "
            "about their mean. Counted: those larger than the first component of unstructured differences, "
            "made by a random sign for every coordinate of every unit, of what the ones before leave.",
            "right singular vectors of Δ − mean Δ, Δ = h_B − h_A",
            "Horn 1965; Hong, Sheng & Dobriban 2020; Dobriban & Owen 2019",
        ),
    ),
    tuned=pair_of,
    empty=empty,
    controls=view.settings,
    body=body,
    fields=PrincipalFields,
)
