"""Patch map as an analysis."""

from __future__ import annotations

from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind
from app.patch_map import panels, view
from app.patch_map.fields import PatchMapFields

TITLE = "Patch map"
QUESTION = "Which token's activation, at which block, carries over what another run says?"
KIND = Kind(
    "patch_map",
    TITLE,
    QUESTION,
    {"patch_map": 7.8},
    "patch_map",
    view.selection_of,
    panels.panels,
    asked=view.asked,
    not_run=view.not_run,
)
PATCH_MAP = Analysis(
    "patch_map",
    TITLE,
    QUESTION,
    section="Live",
    icon="grid_on",
    answers=(
        "which token's activation, at which block, carries over what another prompt or model says? a map of "
        "patches, layer × token"
    ),
    null="unrelated prompts put in instead, measured rounding noise",
    kinds=(KIND,),
    planned=(Planned("patch_map", TITLE, view.planned, alike=("d", "n_layers")),),
    chapters=(of_kind(KIND),),
    headline=first_of(KIND),
    terms=(
        Term(
            "recovery",
            "How much of the way a patch takes a logit difference from the receiving run to the donor's.",
            "(patched − receiving) ÷ (donor − receiving)",
            "Wang et al. 2023; Heimersheim & Nanda 2024",
        ),
    ),
    controls=view.settings,
    fields=PatchMapFields,
)
