"""Weight differences as an analysis."""

from __future__ import annotations

import dataclasses
from functools import partial

from app.frame import controls
from app.frame.analysis import Analysis, Blocks, Chapter, Headline, Term, pair_of
from app.frame.blocks import Block, Text
from app.frame.chapters import collect
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.weights import differences, tables, view
from app.weights import panels as weights
from app.weights.fields import WeightFields

TERMS = (
    Term(
        "weight difference",
        "Frobenius norm of tuned − base for each weight, relative to the base's norm; its numerical rank "
        "where the difference is low-rank.",
        "‖W_tuned − W_base‖ / ‖W_base‖",
    ),
)


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why a store has nothing to show."""
    return weights.NOTHING if weights.model_of(opened, controls.current()) is None else None


def ends(opened: Opened, selection: Selection) -> tuple[str, str]:
    """The two models whose difference is looked at."""
    model = weights.model_of(opened, selection)
    return pair_of(opened, selection) if model is None else tables.ends(opened, model)


def settings(opened: Opened) -> None:
    """Controls of the page."""
    view.model_control(opened)
    controls.across(lambda: controls.slide("layer", "Block ℓ"), lambda: view.tensor_control(opened))
    with controls.row():
        controls.switch("weights", "Shown per tensor", weights.MEASURES)
        controls.switch("head_part", "Heads of the projection", weights.PARTS)


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """Where the weights differ from the study's first model."""
    first = opened.facts.models[0]
    pair = [m for m in dict.fromkeys((selection.a, selection.b)) if m != first]
    blocks: list[Block] = []
    for model in pair:
        found = differences.table(opened, model)
        if found is None:
            blocks.append(Text(f"No weight differences of {model} from {first} are stored."))
        elif not found.height:
            blocks.append(
                Text(differences.title(found, model, first, differences.not_compared(opened, model).height))
            )
        else:
            blocks += collect((partial(differences.panel, opened, model),))
    return blocks or f"Differences are kept against {first} only, the study's first model."


def headline(opened: Opened, selection: Selection) -> Headline:
    """Where in depth the weights of the pair differ."""
    name = tables.between(opened, selection.a, selection.b)
    if name is None:
        return None
    return weights.blocks_panel(opened, selection, name), dataclasses.replace(selection, delta=name)


WEIGHTS = Analysis(
    "weights",
    "Weight diffs",
    "Which weights did the fine-tune change, by how much, and in how many directions?",
    pair=False,
    tuned=ends,
    section="Weights",
    icon="difference",
    answers="which tensors did a fine-tune change, by how much and with what rank? norms, spectra, heads",
    null="edge of random spectra with the same row and column norms; exact moments of head shares",
    chapters=(
        Chapter(
            "weights",
            "Weight differences",
            "Which weights did the fine-tune change, and by how much?",
            chapter,
        ),
    ),
    terms=TERMS,
    headline=headline,
    empty=empty,
    controls=settings,
    panels=weights.panels,
    fields=WeightFields,
)
