"""What a sweep says in words, computed from its numbers; and how much several weight changes agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from engine.errors import AnalysisError
from engine.subspaces.numbers.scores import Scores, mean_defined

Array = NDArray[np.float64]

LEVEL, TOP = 0.05, 5


@dataclass(frozen=True)
class Conclusion:
    """The finding of a sweep.

    Attributes:
        winner: best joint score among write and mixed candidates, if it holds more of the weight change
            than chance by both nulls (Holm's p < 0.05 at some averaged layer) and stays first whichever layer
            is left out; else "", as in runs without the null that keeps the coordinates' scales.
        best: best joint score among write and mixed, whatever the test says; "" without any.
        top_act, top_weight: names of the five best by R_act and by combined R_w, write and mixed only.
        both: names in both.
        fragile: what would make a careful reader hesitate, one sentence each.
        text: all of it as Markdown.
    """

    winner: str
    best: str
    top_act: tuple[str, ...]
    top_weight: tuple[str, ...]
    both: tuple[str, ...]
    fragile: tuple[str, ...]
    text: str


def conclude(scores: Scores, agreement: Stability | None = None) -> Conclusion:
    """States what the numbers separate, and no more.

    Args:
        agreement: how far several weight changes agree, where there are several.
    """
    ranked = [i for i, entry in enumerate(scores.candidates) if entry.axis_kind in ("write", "mixed")]
    r_act, r_w = scores.mean("r_act"), scores.mean("r_combined")
    joint = np.sqrt(r_act * r_w)
    top_act, top_weight = top(scores, r_act, ranked), top(scores, r_w, ranked)
    both = tuple(name for name in top_act if name in top_weight)
    known = [index for index in ranked if np.isfinite(joint[index])]
    if not known:
        text = "No write or mixed candidate has both scores.\n"
        return Conclusion("", "", top_act, top_weight, both, (), text)
    best = max(known, key=lambda index: joint[index])
    kept, held = left_out_layers(scores, best, known), significant(scores, "combined")
    first = scores.scaled and held[best] and kept == len(scores.averaged)
    winner = scores.names[best] if first else ""
    fragile = doubts(scores, best, kept, agreement)
    lines = [
        headline(scores, best, held, winner),
        f"It reaches {scores.percent('act')[best]:.3g} % of the most that R_act can be and "
        f"{scores.percent('combined')[best]:.3g} % of the most that R_w can be at its rank.",
        f"Of the five best by R_act and the five best by R_w, {len(both)} are the same"
        + (f": {', '.join(f'`{name}`' for name in both)}." if both else "."),
    ]
    text = (
        "\n\n".join(lines)
        + "\n"
        + ("\nFragile:\n\n" if fragile else "")
        + "".join(f"- {d}\n" for d in fragile)
    )
    return Conclusion(winner, scores.names[best], top_act, top_weight, both, fragile, text)


def headline(scores: Scores, best: int, held: NDArray[np.bool_], winner: str) -> str:
    """The first sentence."""
    name, r_act, r_w = scores.names[best], scores.mean("r_act")[best], scores.mean("r_combined")[best]
    figures = f"R_act = {r_act:.3g}, R_w = {r_w:.3g}, joint {np.sqrt(r_act * r_w):.3g}"
    if winner:
        return f"`{name}` comes out first among write and mixed candidates ({figures})."
    ranked = [i for i, entry in enumerate(scores.candidates) if entry.axis_kind in ("write", "mixed")]
    if not held[ranked].any():
        return (
            "No write or mixed candidate is shown to hold more of the weight change than "
            f"{chance(scores)} (Holm); the best joint score is `{name}`'s ({figures})."
        )
    if not scores.scaled:
        return f"`{name}` has the best joint score ({figures}); {ONE_NULL}"
    return f"No candidate stands out: `{name}` has the best joint score ({figures}), but see below."


ONE_NULL = (
    "this run knows uniformly random subspaces as its only null, against which whatever shares a few large "
    "coordinates stands out, so that none is called first."
)


def chance(scores: Scores) -> str:
    """What a share is held against: "chance" where both nulls are there, else the one that is."""
    return "chance" if scores.scaled else "uniformly random subspaces"


def significant(scores: Scores, which: str) -> NDArray[np.bool_]:
    """(C,): whether Holm's p is below 0.05 at some averaged layer."""
    return np.asarray((scores.tables[f"holm_{which}"] < LEVEL).any(axis=1))


def top(scores: Scores, values: Array, among: Sequence[int], count: int = TOP) -> tuple[str, ...]:
    """Names of the largest values."""
    known = [index for index in among if np.isfinite(values[index])]
    return tuple(scores.names[index] for index in sorted(known, key=lambda index: -values[index])[:count])


def left_out_layers(scores: Scores, best: int, known: Sequence[int]) -> int:
    """In how many cases `best` stays first by joint score when one averaged layer is left out."""
    here = np.flatnonzero(np.isin(scores.layers, scores.averaged))
    if len(here) == 1:
        return 1
    kept = 0
    for layer in here:
        rest = here[here != layer]
        r_act, r_w = (mean_defined(scores.tables[name][:, rest]) for name in ("r_act", "r_combined"))
        joint = np.nan_to_num(np.sqrt(r_act * r_w), nan=-np.inf)
        kept += best == max(known, key=lambda index: joint[index])
    return kept


def doubts(scores: Scores, best: int, kept: int, agreement: Stability | None) -> tuple[str, ...]:
    """Reasons to hesitate about the best candidate."""
    count = len(scores.averaged)
    r_act, r_w = scores.mean("r_act")[best], scores.mean("r_combined")[best]
    below = int((scores.tables["rank"][best, np.isin(scores.layers, scores.averaged)] < scores.k).sum())
    specific = scores.mean("r_specific")[best]
    found = [
        (
            not significant(scores, "combined")[best],
            "its share of the weight change is not above chance (Holm)",
        ),
        (not significant(scores, "act")[best], "its share of the steering label is not above chance (Holm)"),
        (
            not scores.scaled,
            "chance is that of uniformly random subspaces only, whatever coordinates are large",
        ),
        (kept < count, _without_one(kept, count)),
        (count == 1, "only one layer is averaged"),
        (abs(np.log2(r_act / r_w)) > 1, f"R_act and R_w differ {2 ** abs(np.log2(r_act / r_w)):.2g}-fold"),
        (below > 0, f"its rank is below {scores.k} at {below} of {count} layers"),
        (
            bool(specific < r_act / 2),
            f"outside the {scores.clean} leading clean directions R_act is {specific:.3g}, less than half",
        ),
        (agreement is None, "there is one weight change, so how far ranks hold for another is not known"),
        (
            agreement is not None and not agreement.p_w < LEVEL,
            "several weight changes don't rank the candidates alike by R_w",
        ),
    ]
    return tuple(f"{sentence[0].upper()}{sentence[1:]}." for applies, sentence in found if applies)


def _without_one(kept: int, count: int) -> str:
    if not kept:
        return f"leave out any one of the {count} layers, and another candidate is first"
    return f"with one layer left out it stays first in {kept} of {count} cases"


@dataclass(frozen=True)
class Stability:
    """Agreement of m weight changes about the candidates that all of them scored.

    Attributes:
        names: candidates (C). mean, sd: measure -> (C,) over changes, sd with m − 1.
        w, p_w: Kendall's W of the rankings by combined R_w, ceilings aside, and its p-value.
        w_act, p_act, w_joint, p_joint: the same by R_act and by the joint score.
    """

    names: tuple[str, ...]
    mean: dict[str, Array]
    sd: dict[str, Array]
    w: float
    p_w: float
    w_act: float
    p_act: float
    w_joint: float
    p_joint: float


def stability(scores: Sequence[Scores]) -> Stability:
    """Mean, standard deviation and rank agreement over several weight changes.

    Raises:
        AnalysisError: fewer than two.
    """
    if len(scores) < 2:
        raise AnalysisError(
            "One weight change has no spread.", expected="scores of two or more", given=f"{len(scores)}"
        )
    names = tuple(name for name in scores[0].names if all(name in other.names for other in scores[1:]))
    rows = [[one.names.index(name) for name in names] for one in scores]
    values = {
        name: np.array([one.mean(name)[row] for one, row in zip(scores, rows, strict=True)])
        for name in ("r_act", "r_combined", "r_o_proj", "r_down_proj", "r_specific", "cosine")
    }
    values["joint"] = np.sqrt(values["r_act"] * values["r_combined"])
    kinds = {entry.name: entry.axis_kind for entry in scores[0].candidates}
    real = np.array([kinds[name] != "ceiling" for name in names])
    agreement = {name: kendall_w(values[name][:, real]) for name in ("r_combined", "r_act", "joint")}
    return Stability(
        names,
        {name: found.mean(axis=0) for name, found in values.items()},
        {name: found.std(axis=0, ddof=1) for name, found in values.items()},
        *agreement["r_combined"],
        *agreement["r_act"],
        *agreement["joint"],
    )


def kendall_w(values: Float[np.ndarray, "m c"]) -> tuple[float, float]:
    """Kendall's coefficient of concordance of m rankings of c things, corrected for ties, and its p-value.

    W = 12 S/(m²(c³ − c) − m Σ T), T = Σ (t³ − t) over groups of ties (Kendall & Smith 1939); m(c − 1)W
    is about χ² with c − 1 degrees of freedom. Things
    without a value in some ranking leave; NaN below two things.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    m, c = values.shape
    if c < 2 or m < 2:
        return float("nan"), float("nan")
    ranks = stats.rankdata(values, axis=1)
    ties = sum(float((n**3 - n).sum()) for n in (np.unique(row, return_counts=True)[1] for row in ranks))
    spread = float(((ranks.sum(axis=0) - m * (c + 1) / 2) ** 2).sum())
    most = m * m * (c**3 - c) - m * ties
    if most <= 0:
        return float("nan"), float("nan")
    w = 12 * spread / most
    return w, float(stats.chi2.sf(m * (c - 1) * w, c - 1))
