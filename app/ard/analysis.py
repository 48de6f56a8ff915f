"""Lengthscales as an analysis."""

from __future__ import annotations

from app.ard import view
from app.ard.fields import ArdFields
from app.frame.analysis import Analysis, Kind, Planned
from app.frame.chapters import of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from engine.ard.spec import Ard

TITLE = "ARD-MMD"


def planned(opened: Opened, selection: Selection) -> list[Ard]:
    """The fits of every block under the selection."""
    return view.grid(opened, view.effective(opened, selection)) if view.available(opened) else []


FITS = Kind(
    "ard",
    TITLE,
    "Which dimensions carry what two languages share about a problem?",
    {"ard": None},
    view.PAGE,
    view.selection_of,
    view.run_panels,
)
ARD = Analysis(
    "ard",
    TITLE,
    "Which dimensions tell problems apart and languages not? One lengthscale per dimension, fitted by MMD.",
    section="Languages",
    icon="tune",
    answers="which dimensions tell problems apart but not languages?",
    null="held-out problems; cold and random starts",
    kinds=(FITS,),
    planned=(Planned("ard", TITLE, planned),),
    empty=view.empty,
    controls=view.settings,
    body=view.show,
    chapters=(of_kind(FITS),),
    fields=ArdFields,
)
