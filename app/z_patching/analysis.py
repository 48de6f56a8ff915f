"""Z-patching as an analysis."""

from __future__ import annotations

from app.frame.analysis import Analysis, Kind, Planned
from app.frame.chapters import first_of, of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import weights as geometry
from app.z_patching import tokens, view
from app.z_patching.fields import ZFields
from engine.z_patching.spec import ZPatching

TITLE = "Z-patching"


def planned(opened: Opened, selection: Selection) -> list[ZPatching]:
    """The selected run, where heads are known and problems come in two languages."""
    there = geometry.available(opened) and geometry.comparable(opened)
    return [view.experiment_of(opened, selection)] if there else []


PATCHES = Kind(
    "z_patching",
    TITLE,
    "Does a subspace carry the answer or the language from one language to another?",
    {"z_patching": 4.0},
    view.PAGE,
    view.selection_of,
    view.run_panels,
)
TOKENS = Kind(
    "z_tokens",
    "Z-patching, one problem",
    "What did the model nearly say at every step of one problem's patched answers?",
    {"z_tokens": None},
    tokens.PAGE,
    tokens.run_selection,
    tokens.run_panels,
)
Z_PATCHING = Analysis(
    "z_patching",
    TITLE,
    "Does the subspace that attention reads carry the answer or the language from one language to another?",
    section="Languages",
    icon="translate",
    answers=(
        "which part of the stream carries the answer, and which its language? generated answers under "
        "patches of Z (head kernels, lengthscales, principal components), its complement and all, token by "
        "token"
    ),
    null="random Z, another problem's source, the own mean; exact tests",
    kinds=(PATCHES, TOKENS),
    planned=(Planned("z-patching", TITLE, planned),),
    chapters=(of_kind(PATCHES),),
    headline=first_of(PATCHES),
    fields=ZFields,
)
