"""Titles of subspace scores, over a weight change without any relation to the weights, and one with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.subspaces import tables as q
from app.subspaces import words as say
from benchmarks.calibration.effects import UNRELATED, change
from benchmarks.calibration.entry import Entry, Make
from engine.subspaces.numbers import Inputs, Scores, Stability, conclude, sweep
from engine.subspaces.numbers.words import kendall_w

Array = NDArray[np.float64]
Rng = np.random.Generator
ROOM = "app.subspaces"
KINDS = ("write", "mixed")


def scored(given: Inputs) -> Scores:
    return sweep(given, k=4, broad=6)


def above_chance(given: Inputs) -> bool:
    scores = scored(given)
    title = say.map_title(scores, KINDS, conclude(scores))
    return not title.startswith(("None of", "No "))


def comes_out_first(given: Inputs) -> bool:
    scores = scored(given)
    found = conclude(scores)
    titles = (say.ranking_title(found), say.map_title(scores, KINDS, found))
    return any("comes out first" in title for title in titles)


def cells_above(given: Inputs) -> bool:
    scores = scored(given)
    measures = [measure for measure in q.MEASURES.values() if measure.moment == "combined"]
    titles = [say.grid_title(scores, measure) for measure in measures]
    assert all("above chance" in title for title in titles)
    return not all(" in 0 of " in title for title in titles)


def holds_more(given: Inputs) -> bool:
    """What is said of one candidate, whichever it is: the one that the weights' own MLP writes."""
    return "holds more than chance" in say.profile_title(scored(given), "mlp_write")


def rankings(shared: float, changes: int = 3, candidates: int = 12) -> Make:
    """R_act, R_w and their joint score by several weight changes, with a part that all changes share."""

    def make(rng: Rng) -> Sequence[Array]:
        act, weight = (
            np.exp(shared * rng.normal(size=candidates) + rng.normal(size=(changes, candidates)))
            for _ in range(2)
        )
        return act, weight, np.sqrt(act * weight)

    return make


def said_to_agree(given: Sequence[Array]) -> bool:
    act, weight, joint = (kendall_w(values) for values in given)
    found = Stability((), {}, {}, *weight, *act, *joint)
    return "rank the candidates alike by" in say.stability_title(found, 3).replace("not shown to rank", "")


ENTRIES = (
    Entry(
        "Subspace scores: first",
        "… comes out first",
        comes_out_first,
        UNRELATED,
        change(True),
    ),
    Entry(
        "Subspace scores: above chance",
        "n of m candidates hold more of the weight change than chance",
        above_chance,
        UNRELATED,
        change(True),
    ),
    Entry(
        "Subspace scores: cells",
        "R_w is above chance in n of m cells",
        cells_above,
        UNRELATED,
        change(True),
    ),
    Entry(
        "Subspace scores: one candidate",
        "a candidate holds more than chance",
        holds_more,
        UNRELATED,
        change(True),
    ),
    Entry(
        "Subspace scores: agreement",
        "several weight changes rank the candidates alike",
        said_to_agree,
        {"unrelated scores of two changes": rankings(0.0, 2), "of three": rankings(0.0)},
        rankings(2.0),
    ),
)

CONCLUDES = {
    "words.grid_title": ("Subspace scores: cells",),
    "words.map_title": ("Subspace scores: above chance", "Subspace scores: first"),
    "words.profile_title": ("Subspace scores: one candidate",),
    "words.ranking_title": ("Subspace scores: first",),
    "words.stability_title": ("Subspace scores: agreement",),
}
FIGURES = {
    "words.left_out_title": "a count",
    "words.specificity_title": "a count of values",
}
PHRASES = {
    "words.agreement_figures": "",
    "words.counted": "",
    "words.figure": "",
}
