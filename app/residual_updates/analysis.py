"""Residual updates as an analysis."""

from __future__ import annotations

import dataclasses
from functools import partial

from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter, Make, Term, pair_of
from app.frame.chapters import collect, plain
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.residual_updates import panels as updates

TITLE = "Residual updates R(ℓ)"
TERMS = (
    Term(
        "R(ℓ)",
        "Length of a block's update of the residual stream inside the subspace Z over its length outside. "
        "Z holds the leading key-side directions of the heads of a reference block. Chance is the R of an "
        "update unrelated to Z; it is not 1.",
        "mean ‖P_Z Δ‖ / mean ‖P_Z⊥ Δ‖;  chance Γ((k+1)/2)Γ((d−k)/2) / (Γ(k/2)Γ((d−k+1)/2))",
    ),
)


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why a store has nothing to show."""
    return components.no_position(opened) or (None if updates.available(opened) else updates.WHY_EMPTY)


def settings(opened: Opened) -> None:
    """Controls of the page."""
    controls.across(
        lambda: controls.choose("position", "Token position", only=updates.positions(opened)),
        lambda: controls.steps("k", "Rank k of Z", updates.ranks(opened)),
        lambda: controls.slide("ref", "Reference block of Z"),
    )
    with controls.row():
        controls.switch("model", "Model", updates.model_names(controls.current()))
        controls.filter_controls()
        with controls.more():
            controls.switch("scale", "Show", {"r": "R", "r_over_chance": "R ÷ chance"})
            means = {"ratio_of_means": "ratio of means", "mean_of_ratios": "mean of ratios"}
            controls.switch("mean", "Average", means)
            controls.switch("parts", "Attention / MLP", {"shown": "shown", "hidden": "hidden"})


def panels(opened: Opened, selection: Selection) -> list[Make]:
    """What the page shows."""
    chosen = updates.effective(opened, selection)
    updates.prepare(opened, chosen, components.progress)
    return [partial(make, opened, chosen) for make in updates.PANELS]


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """R of every block, for both models."""
    if not updates.available(opened):
        return plain(updates.WHY_EMPTY)
    chosen = updates.effective(opened, selection)
    sides = ("a",) if selection.a == selection.b else ("a", "b")
    makers: list[Make] = [
        partial(make, opened, dataclasses.replace(chosen, model=side))
        for side in sides
        for make in (updates.curve_panel, updates.language_panel, updates.split_panel)
    ]
    return collect(makers)


RESIDUAL_UPDATES = Analysis(
    "residual_updates",
    TITLE,
    "How much of what each block adds to the stream lies in the subspace Z that one block's heads read?",
    tuned=pair_of,
    section="Compare",
    icon="stacked_line_chart",
    answers="does a block write into the subspace Z that its attention reads, or beside it?",
    null="closed-form chance; bootstrap band",
    chapters=(
        Chapter(
            "updates",
            TITLE,
            "How much of what each block adds to the stream lies in the subspace that one block's heads "
            "read?",
            chapter,
        ),
    ),
    terms=TERMS,
    empty=empty,
    controls=settings,
    panels=panels,
)
