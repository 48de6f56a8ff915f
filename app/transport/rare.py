"""Controls of a map that are rarely moved: forms that others use, beside the better ones by default."""

from __future__ import annotations

from app import screen
from app.frame import controls
from app.transport.fields import MapFields
from engine.transport.named import USES

SCALES = {"fit": "least squares", "seed": "whole source"}
SCALE_HELP = (
    "least squares: the scale with which a map of rank k fits best. whole source: divided by the energy of "
    "the whole source instead of its k directions, which makes truncated maps too short, about by rank ÷ k."
)
JOINT = {"no": "the target's", "yes": "both models'"}
JOINT_HELP = (
    "Whose directions: for the logit subspace those of one unembedding or of both stacked, for principal "
    "components those of each side by itself or of both sides' activations together. Both need one width."
)


def popover() -> None:
    """The rare parameters that the selected map has, behind a button."""
    if {"scale", "joint", "penalty_from"} & set(USES[MapFields.of(controls.current()).method]):
        with screen.popover("More of the map", icon=":material/tune:", key="map-rare"):
            show()


def show() -> None:
    """The rare parameters that the selected map has."""
    own = MapFields.of(controls.current())
    used = USES[own.method]
    if "scale" in used:
        controls.switch("map_scale", "Scale", SCALES, help=SCALE_HELP)
    if "joint" in used:
        names = JOINT if own.method == "LogitSubspaceRidge" else JOINT | {"no": "each side's"}
        controls.switch("joint", "Directions", names, help=JOINT_HELP)
    if "penalty_from" in used and own.lam_mode == "auto":
        controls.slide("lam_from", "Smallest log₁₀ λ that is tried", step=0.5)
