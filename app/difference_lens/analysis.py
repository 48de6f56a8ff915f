"""Difference lens as an analysis."""

from __future__ import annotations

from collections.abc import Sequence

from app.difference_lens import panels, view
from app.difference_lens.fields import DifferenceLensFields
from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind
from app.frame.stored import Asked

TITLE = "Difference lens"
QUESTION = "Which tokens does the change from one model to the other speak about?"
KIND = Kind(
    "difference_lens",
    TITLE,
    QUESTION,
    {"difference_lens": 9.6},
    "difference_lens",
    view.selection_of,
    panels.panels,
    asked=view.asked,
    not_run=view.not_run,
)


def _prompts_first(runs: Sequence[Asked]) -> list[Asked]:
    return sorted(runs, key=lambda run: run[0]["over"] == "texts")


DIFFERENCE_LENS = Analysis(
    "difference_lens",
    TITLE,
    QUESTION,
    section="Live",
    icon="translate",
    answers=(
        "which tokens does the change speak about? the mean difference of the streams read through the "
        "unembedding, block × position"
    ),
    null="sign flips and bootstrap, all tokens at once; measured rounding noise; random directions",
    kinds=(KIND,),
    planned=(Planned("difference_lens", TITLE, view.planned, alike=("d", "n_layers")),),
    chapters=(of_kind(KIND),),
    headline=first_of(KIND, _prompts_first, panel=1),
    terms=(
        Term(
            "difference lens",
            "What the tuned model's state makes of a token's logit less what the base's makes of it, through "
            "the base's final norm and unembedding, on average over prompts.",
            "mean of U norm(h_tuned) − U norm(h_base), less its mean over the vocabulary",
            "Minder et al. 2025; nostalgebraist 2020",
        ),
    ),
    controls=view.settings,
    fields=DifferenceLensFields,
)
