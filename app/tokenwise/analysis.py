"""Token by token as an analysis."""

from __future__ import annotations

from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import of_kind
from app.tokenwise import prompt, view
from app.tokenwise.fields import TokenwiseFields

TITLE = "Token by token"
QUESTION = (
    "Behind which tokens of a prompt do the models part, and at which layer do they come to what they say?"
)
KIND = Kind(
    "tokenwise",
    TITLE,
    QUESTION,
    {"tokenwise": None},
    "tokenwise",
    view.selection_of,
    view.panels,
    asked=view.asked,
    not_run=view.not_run,
    below=view.replies,
)
TOKENWISE = Analysis(
    "tokenwise",
    TITLE,
    QUESTION,
    section="Live",
    icon="segment",
    answers=(
        "behind which tokens of a prompt do two models part, and at which layer? KL of each token, logit lens"
    ),
    null="measured rounding noise",
    kinds=(KIND,),
    planned=(Planned("tokenwise", TITLE, view.planned),),
    chapters=(of_kind(KIND),),
    terms=(
        Term(
            "logit lens",
            "What a model would say if an earlier state of its stream were the last one.",
            "softmax(U · norm(h_s))",
            "nostalgebraist 2020",
        ),
    ),
    controls=prompt.settings,
    fields=TokenwiseFields,
)
