"""Steering and ablation as an analysis, which has no page of its own: it is a part of rank's."""

from __future__ import annotations

from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import of_kind
from app.steering import view
from app.steering.fields import SteeringFields

TITLE = "Steering and ablation"
TERMS = (
    Term(
        "steering, ablation",
        "Steering adds α times a unit direction v in units of the site's mean norm; ablation removes the "
        "part along v. The side effect is the KL on prompts that should not change.",
        "own + α m v, m the mean norm;  own − (own·v)v",
    ),
)

STEERED = Kind(
    "steering",
    TITLE,
    "Does a direction move what it should, and what does it cost elsewhere?",
    {"steering": 1.5},
    view.PAGE,
    view.selection_of,
    view.run_panels,
)
STEERING = Analysis(
    "steering",
    TITLE,
    kinds=(STEERED,),
    planned=(
        Planned("steering", TITLE, lambda _opened, at: [view.experiment_of(at)], alike=("d",), deepest=True),
    ),
    chapters=(of_kind(STEERED),),
    terms=TERMS,
    fields=SteeringFields,
)
