"""Z-patching as an analysis."""

from __future__ import annotations

from app import screen
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis, Kind, Planned
from app.frame.chapters import first_of, of_kind
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import weights as geometry
from app.z_patching import controls, fits, tokens, view, words
from app.z_patching.fields import ZFields
from engine.z_patching.spec import ZPatching

TITLE = "Z-patching"


def planned(opened: Opened, selection: Selection) -> list[ZPatching]:
    """The selected run, where heads are known and problems come in two languages."""
    there = geometry.available(opened) and geometry.comparable(opened)
    return [view.experiment_of(opened, selection)] if there else []


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why there is nothing to patch; None for problems in two languages."""
    pairs = len(opened.facts.languages) > 1 and "pair_id" in opened.store.prompts.columns
    return None if pairs else view.WHY_EMPTY


def show(opened: Opened, selection: Selection) -> None:
    """What runs the selected experiment (or the fits that it needs first), and its stored result."""
    wanted = view.experiment_of(opened, selection)
    found = live_view.stored(opened, wanted)
    if found is None:
        live_view.rejoin(opened, wanted)
    unfitted = [] if found is not None else fits.missing(opened, wanted)
    if unfitted:
        fits.ask_first(opened, unfitted)
    else:
        live_view.run_button(opened, [wanted], done=found is not None)
    live_view.watch()
    live_view.watch_partial(ZPatching, view.so_far, 1.5, wanted)
    if found is None and not unfitted and not live_view.active():
        components.empty(*view.not_run(wanted))
    if found is not None:
        screen.info(words.baseline(found.summary), icon=":material/balance:")
        controls.cells(opened, found)
        verdict, *others = view.run_panels(opened, found, selection)
        components.show(opened, verdict)
        problem = view.outputs(opened, found, selection)
        if problem is not None:
            tokens.show(opened, found, problem, view.shown_cell(opened, found, selection))
        components.show_all(opened, others)
        live_view.notes(found)


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
    empty=empty,
    controls=controls.choosers,
    body=show,
    fields=ZFields,
)
