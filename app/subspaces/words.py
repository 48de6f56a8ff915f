"""Sentences about scored subspaces. A candidate is called first only where `conclude` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from app.frame import words
from app.subspaces import tables as q
from engine.subspaces.numbers import Conclusion, Scores, Stability
from engine.subspaces.numbers.words import chance, significant

READ_SIDE = "a coincidence of directions, not an explanation"


def figure(value: float) -> str:
    """A ratio for a sentence: three significant digits."""
    return "undefined" if not np.isfinite(value) else words.minus(f"{value:.3g}".replace("e-0", "e-"))


def counted(count: int, of: int, what: str) -> str:
    """ "3 of 12 candidates hold", "1 of 12 candidates holds"."""
    return f"{count} of {of} {what} {'holds' if count == 1 else 'hold'}"


def ranking_title(found: Conclusion) -> str:
    """How far the five best by either score are the same, and whether one candidate comes out first."""
    if not found.best:
        return "No write or mixed candidate has both scores"
    text = f"Of the five best by R_act and the five best by R_w, {len(found.both)} are the same"
    return f"{text}; {found.winner} comes out first" if found.winner else f"{text}; none stands out"


def map_title(scores: Scores, kinds: Sequence[str], found: Conclusion) -> str:
    """How many candidates of a side are above chance, and whether one comes out first.

    Rule: above chance is Holm's p < 0.05 at some averaged block, of the larger p of both nulls: uniformly
    random subspaces, and those that keep the coordinates' scales; first as `conclude` says.
    """
    known = [
        index
        for index, entry in enumerate(scores.candidates)
        if entry.axis_kind in kinds and np.isfinite(scores.mean("r_combined")[index])
    ]
    weight, act = significant(scores, "combined")[known], significant(scores, "act")[known]
    read = tuple(kinds) == q.READ
    side = "read-side candidates" if read else "write and mixed candidates"
    if not known:
        return f"No {side} have both scores"
    if not weight.any():
        held = f"None of {len(known)} {side} is shown to hold more of the weight change"
        return f"{held} than {chance(scores)} (Holm)"
    count = int(weight.sum())
    text = f"{counted(count, len(known), side)} more of the weight change than {chance(scores)}"
    if read:
        return f"{text}: {READ_SIDE}"
    both = int((weight & act).sum())
    text += f", {both} also more of what it does to the stream"
    return f"{text}; {found.winner} comes out first" if found.winner else f"{text}; none stands out"


def profile_title(scores: Scores, name: str) -> str:
    """At which averaged blocks a candidate is above chance, in the weight change and in its effect."""
    row = scores.names.index(name)
    if not (np.nan_to_num(scores.tables["rank"][row]) > 0).any():
        return f"{name} has no direction at any block"
    r_act, r_w = figure(scores.mean("r_act")[row]), figure(scores.mean("r_combined")[row])
    figures = f"mean R_act = {r_act}, mean R_w = {r_w}"
    if scores.candidates[row].axis_kind == "ceiling":
        return f"{name} looks at the weight change itself: {figures}"
    weight, act = (q.above(scores, name, moment) for moment in ("combined", "act"))
    if not weight and not act:
        return f"{name} is nowhere shown to be above {chance(scores)} (Holm): {figures}"
    parts = [
        f"of {what} {'at ' + words.blocks(at) if at else 'nowhere'}"
        for what, at in (("the weight change", weight), ("what it does to the stream", act))
    ]
    return f"{name} holds more than {chance(scores)} {', '.join(parts)}: {figures}"


def grid_title(scores: Scores, measure: q.Measure) -> str:
    """How many cells are above chance, or over which range the measure runs; it ranks nothing."""
    real = np.array([entry.axis_kind != "ceiling" for entry in scores.candidates], dtype=bool)
    if measure.moment:
        adjusted = scores.tables[f"holm_{measure.moment}"]
        tested, held = np.isfinite(adjusted), np.nan_to_num(adjusted, nan=1.0) < q.LEVEL
        blocks = words.blocks([int(at) for at in scores.layers[held.any(axis=0)]])
        where = f", at {blocks}" if held.any() else ""
        return (
            f"{measure.title}: above {chance(scores)} (Holm) in {held.sum()} of {tested.sum()} cells{where}"
        )
    values = scores.tables[measure.name][real]
    known = values[np.isfinite(values)]
    if not known.size:
        return f"{measure.title} has no value"
    return f"{measure.title} runs from {figure(known.min())} to {figure(known.max())}, ceilings aside"


def specificity_title(scores: Scores) -> str:
    """How many of the candidates whose R_act is above chance keep half of it without the clean directions."""
    held = significant(scores, "act")
    taken = scores.tables["taken_specific"]
    clean = int(np.nanmax(taken)) if np.isfinite(taken).any() else 0
    if clean == 0:
        return "No clean direction is taken out"
    if not held.any():
        return "No candidate's R_act is above chance, so there is nothing to keep"
    before, after = scores.mean("r_act")[held], scores.mean("r_specific")[held]
    kept = int((np.nan_to_num(after) >= before / 2).sum())
    names = "leading clean direction" if clean == 1 else f"{clean} leading clean directions"
    return (
        f"Without the {names}, {kept} of {held.sum()} candidates above chance keep at least "
        "half of their R_act"
    )


def stability_title(agreement: Stability, count: int) -> str:
    """Which rankings several weight changes agree on.

    Rule: they rank alike by a score when the p-value of Kendall's W is below 0.05.
    """
    told = {
        "the joint score": (agreement.w_joint, agreement.p_joint),
        "R_w": (agreement.w, agreement.p_w),
        "R_act": (agreement.w_act, agreement.p_act),
    }
    known = {name: found for name, found in told.items() if np.isfinite(found[0])}
    if not known:
        return f"No candidates have a score under all {count} weight changes"
    alike = [f"{name} (W = {w:.2f})" for name, (w, p) in known.items() if p < q.LEVEL]
    apart = [f"{name} (W = {w:.2f})" for name, (w, p) in known.items() if not p < q.LEVEL]
    if not alike:
        return f"{count} weight changes are not shown to rank the candidates alike by {' or '.join(apart)}"
    text = f"{count} weight changes rank the candidates alike by {', '.join(alike)}"
    return text + (f"; not shown by {', '.join(apart)}" if apart else "")


def agreement_figures(agreement: Stability) -> str:
    """Kendall's W of every score with its p-value."""
    told = (
        ("joint", agreement.w_joint, agreement.p_joint),
        ("R_w", agreement.w, agreement.p_w),
        ("R_act", agreement.w_act, agreement.p_act),
    )
    known = [f"{name} W = {w:.3f}, p = {words.nats(p)}" for name, w, p in told if np.isfinite(w)]
    return "; ".join(known) or "undefined, no candidate has scores under all of them"


def left_out_title(table: pl.DataFrame) -> str:
    """How many candidates have no scores."""
    count = table["candidate"].n_unique()
    return f"{count} candidate{'' if count == 1 else 's'} left out"
