"""Transport maps as an analysis."""

from __future__ import annotations

import dataclasses
from functools import partial

from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Advance, Analysis, Blocks, Chapter, Fitted, Make, Term
from app.frame.chapters import collect
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.transport import panels as transport
from app.transport import places as transport_table
from app.transport import places_view, rare, saved
from app.transport import tables as tq
from app.transport.fields import MapFields

TITLE = "Transport maps"
QUESTION = "Can one model's activations be predicted from the other's, on prompts that the map has not seen?"
TERMS = (
    Term(
        "transport map",
        "A map from the source's activations to the target's at one site, fitted on the train split. CKA "
        "raw compares the two models' own activations, CKA mapped the carried-over ones with the target's.",
        "ŷ = f(x), fitted on (xᵢ, yᵢ), i in train",
    ),
    Term(
        "ScaledProcrustes",
        "Shrink both covariances, whiten, rotate and rescale, colour again; rank k keeps the k leading "
        "directions.",
        "C = (1−γ)Σ + γ tr(Σ)/d I;  USVᵀ = X_wᵀY_w;  ŷ = s_k (x−μ_x) C_x^(−1/2) U_k V_kᵀ C_y^(1/2) + μ_y;"
        "  s_k = Σ_{i≤k} S_i / ‖X_w U_k‖²",
        "Schönemann 1966; Ledoit & Wolf 2004 for the shrinkage target",
    ),
    Term(
        "Ridge, λ",
        "The map with the smallest penalised error on standardised sides; λ by leave-one-out over train "
        "prompts, or pairs of them, unless it was set.",
        "Σᵢ ‖yᵢ − xᵢW‖² + λ‖W‖²",
        "Hoerl & Kennard 1970",
    ),
    Term(
        "R²",
        "Share of the target's variance that a map explains, pooled over dimensions; below 0 the mean does "
        "better. Shuffled: refitted on wrongly paired train prompts, scored on the right validation pairs.",
        "1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²",
    ),
)


def settings(opened: Opened) -> None:
    """Direction, place and map, and the parameters that this map has.

    Raises:
        AnalysisError: the map can't be fitted at the selected place; the message says why.
    """
    controls.across(
        controls.direction,
        lambda: controls.choose("site", "Site", only=transport.SITES),
        lambda: controls.choose("position", "Token position"),
        lambda: controls.choose(
            "method", "Map", names=lambda m: transport.METHOD_NAMES[m], help=transport.METHOD_HELP
        ),
    )
    uses = transport.uses(controls.current())
    with controls.row():
        transport.check(opened, controls.current())
        controls.slide("layer", "Block ℓ")
        if "clusters" in uses:
            controls.slide("clusters", "Clusters (1: one map)")
        if "rank" in uses:
            controls.steps("rank", "Rank k", transport.ranks(opened), names=transport.rank_name)
        if "shrinkage" in uses:
            controls.slide("shrink", "Shrinkage γ", step=0.05)
        if "directions" in uses:
            controls.steps("q", "Logit directions q", transport.directions(opened, controls.current()))
        if "penalty" in uses:
            controls.switch("lam_mode", "Penalty", {"auto": "λ chosen on train", "set": "set λ"})
            if MapFields.of(controls.current()).lam_mode == "set":
                controls.slide("lam", "log₁₀ λ", step=0.25)
        rare.popover()


def show(opened: Opened, selection: Selection) -> None:
    """The map in depth at one place, at every place, and maps that are kept."""
    chosen = transport.effective(opened, selection)
    with components.guard("transport: panels"):
        components.show_all(opened, (make(opened, chosen) for make in transport.PANELS))
    with components.guard("transport: every place"):
        places_view.section(opened, chosen)
    saved.section(opened, chosen)


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """The map at every place where that was computed, and in depth at one."""
    at = transport.effective(opened, selection)
    known = transport_table.known(opened.store, tq.Place.of(at), tq.spec_of(at))
    makers: list[Make] = [partial(make, opened, at) for make in transport.PANELS]
    if known is not None:
        makers.insert(0, partial(transport.table_panel, opened, at))
    return collect(makers)


def missing(opened: Opened, selection: Selection) -> str:
    """What to fit; "" where the map of the selection was fitted at every place."""
    place, spec = tq.Place.of(selection), tq.spec_of(selection)
    known = transport_table.known(opened.store, place, spec)
    return f"{spec.describe()}, at every site and block." if known is None else ""


def fit(opened: Opened, selection: Selection, advance: Advance) -> None:
    """Fits the selection's map at every site and block, in both directions; what is known stays."""
    for side in "ab":
        at = transport.effective(opened, dataclasses.replace(selection, target=side))
        place, spec = tq.Place.of(at), tq.spec_of(at)
        if transport_table.known(opened.store, place, spec) is None:
            transport_table.compute(opened.store, place, spec, lambda text: partial(_fitting, advance, text))


def _fitting(advance: Advance, text: str, done: int, total: int) -> None:
    advance(done, total, text)


TRANSPORT = Analysis(
    "transport",
    TITLE,
    QUESTION,
    section="Compare",
    icon="route",
    answers=(
        "can one model's activations be predicted from the other's? R², CKA, cosine of seven maps, also "
        "per cluster; λ and rank paths; maps to keep and export"
    ),
    null="refits on exchanged pairs; permuted pairing; bootstrap over pairs",
    chapters=(Chapter("transport", TITLE, QUESTION, chapter, deepest=True),),
    terms=TERMS,
    fitted=Fitted(TITLE, missing, fit),
    empty=components.no_position,
    controls=settings,
    body=show,
    fields=MapFields,
)
