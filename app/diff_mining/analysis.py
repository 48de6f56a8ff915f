"""Diff mining as an analysis."""

from __future__ import annotations

from app.diff_mining import panels, view
from app.diff_mining.fields import DiffMiningFields
from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind

TITLE = "Diff mining"
QUESTION = "Which words does one model say more often than the other, and where?"
KIND = Kind(
    "diff_mining",
    TITLE,
    QUESTION,
    {"diff_mining": None},
    "diff_mining",
    view.selection_of,
    panels.panels,
    asked=view.asked,
    not_run=view.not_run,
    below=view.below,
)
DIFF_MINING = Analysis(
    "diff_mining",
    TITLE,
    QUESTION,
    section="Live",
    icon="manage_search",
    answers=(
        "which tokens does one model say more often? log ratio of expected counts behind every token of "
        "plain texts or prompts, topics among them, and the contexts"
    ),
    null="sign flips and bootstrap of whole texts, all tokens at once; measured rounding noise",
    kinds=(KIND,),
    planned=(Planned("diff_mining", TITLE, view.planned),),
    chapters=(of_kind(KIND),),
    headline=first_of(KIND),
    terms=(
        Term(
            "diff mining",
            "How much more often the tuned model is expected to say a token than the base, behind every "
            "token of the same texts.",
            "mean over texts of log(mean p_tuned ÷ mean p_base)",
            "Minder et al. 2025",
        ),
    ),
    controls=view.settings,
    fields=DiffMiningFields,
)
