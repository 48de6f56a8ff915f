"""Similarity as an analysis."""

from __future__ import annotations

import dataclasses
from functools import partial

from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter, Headline, Make, Term
from app.frame.chapters import collect
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.similarity import contrast
from app.similarity import panels as similarity
from app.similarity.fields import SimilarityFields

TITLE = "Similarity (CKA)"
TERMS = (
    Term(
        "CKA (biased)",
        "Similarity of two sets of activations of the same prompts, 1 for equal geometry up to rotation "
        "and scale; rises towards 1 when there are fewer prompts than dimensions. X, Y centred per column.",
        "‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms",
        "Kornblith et al. 2019",
    ),
    Term(
        "CKA (debiased)",
        "The same from unbiased estimates of the three terms; about 0 for unrelated activations, and "
        "sometimes slightly below.",
        "HSICᵤ(K, L) / √(HSICᵤ(K, K) HSICᵤ(L, L)), diagonals of the Gram matrices K, L left out",
        "Song et al. 2012",
    ),
)


def settings(opened: Opened) -> None:
    """Controls of the page."""
    controls.across(
        lambda: controls.choose("site", "Site", only=similarity.SITES),
        lambda: controls.choose("position", "Token position"),
        lambda: controls.slide("layer", "Block ℓ"),
    )
    with controls.row():
        controls.filter_controls()
        contrast.choose(opened)
        with controls.more():
            controls.switch("estimator", "Headline estimator", {"debiased": "debiased", "biased": "biased"})
            ends = {"values": "fit to the values", "null": "down to the null"}
            controls.switch("view", "Vertical axis", ends)
            controls.switch("interval", "Interval", {"bootstrap": "bootstrap", "jackknife": "jackknife"})


def panels(opened: Opened, selection: Selection) -> list[Make]:
    """What the page shows."""
    return [partial(make, opened, selection) for make in similarity.panels(selection)]


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """CKA at every captured site; by language and across blocks at the selected one."""
    sites = [s for s in similarity.SITES if s in opened.facts.sites and s != "resid_pre"]
    first = similarity.site_of(selection)
    makers = panels(opened, selection)
    if selection.a != selection.b:
        others = [dataclasses.replace(selection, site=s) for s in sites if s != first]
        makers += [partial(similarity.curve_panel, opened, at) for at in others]
    return collect(makers)


def headline(opened: Opened, selection: Selection) -> Headline:
    """CKA block by block, of two models."""
    if selection.a == selection.b or components.no_position(opened) is not None:
        return None
    return similarity.curve_panel(opened, selection), selection


SIMILARITY = Analysis(
    "similarity",
    TITLE,
    "Do two models place the same prompts in the same geometry, block by block?",
    section="Compare",
    icon="compare_arrows",
    answers=(
        "where do two models' representations part? CKA per layer and site, biased and debiased, all "
        "layers against all, by language"
    ),
    null="permuted pairing; bootstrap or jackknife over prompts",
    chapters=(
        Chapter(
            "similarity",
            TITLE,
            "Do the two models place the same prompts in the same geometry, block by block?",
            chapter,
        ),
    ),
    terms=TERMS,
    headline=headline,
    empty=components.no_position,
    controls=settings,
    panels=panels,
    fields=SimilarityFields,
)
