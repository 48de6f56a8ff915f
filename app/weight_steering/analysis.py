"""Weight steering as an analysis."""

from __future__ import annotations

import dataclasses

from app.behaviour.view import wording_of
from app.frame.analysis import Analysis, Kind, Planned, pair_of
from app.frame.chapters import first_of, of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.weight_steering import view
from app.weight_steering.fields import WeightSteeringFields
from engine.weight_steering.spec import WeightSteering

TITLE = "Weight steering α"
QUESTION = "What does a fine-tune's weight difference do when there is more of it, less, or its opposite?"


def planned(opened: Opened, selection: Selection) -> list[WeightSteering]:
    """The first model steered by the other one's difference; none for a pair without one."""
    first = opened.facts.models[0]
    others = [name for name in (selection.a, selection.b) if name != first]
    if len(others) != 1 or first not in (selection.a, selection.b) or not view.can_steer(opened):
        return []
    at = dataclasses.replace(selection, a=first, b=others[0])
    return [view.fitted(opened, at, view.experiment_of(at, view.lead(opened), wording_of(opened)))]


STEERED = Kind(
    "weight_steering",
    TITLE,
    QUESTION,
    {"weight_steering": 88.0},
    view.PAGE,
    view.selection_of,
    view.run_panels,
    asked=view.asked,
    not_run=view.not_run,
    below=view.answers,
)
WEIGHT_STEERING = Analysis(
    "weight_steering",
    TITLE,
    QUESTION,
    pair=False,
    tuned=pair_of,
    section="Weights",
    icon="exercise",
    answers=(
        "what do more, less and the opposite of a weight difference do? agreement, refusal, KL, "
        "perplexity, texts; variants at equal KL"
    ),
    null="a random change of the same norms and ranks; intervals over prompts",
    kinds=(STEERED,),
    planned=(Planned("weight-steering", TITLE, planned),),
    chapters=(of_kind(STEERED),),
    empty=lambda opened: None if view.can_steer(opened) else view.NOTHING,
    controls=view.steering_controls,
    headline=first_of(STEERED),
    fields=WeightSteeringFields,
)
