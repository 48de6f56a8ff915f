"""Tables of scored subspaces: of one weight change at one rank, and across changes. Nothing is built anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from app.charts.tall import Shade
from engine.errors import AnalysisError
from engine.subspaces.numbers import Scores, Stability, across, stability
from engine.subspaces.numbers.inputs import TENSORS

WRITE, READ, CEILING = ("write", "mixed"), ("read",), ("ceiling",)
GROUPS = (WRITE, READ, CEILING)
"""Axis kinds that are ranked together."""
LEVEL = 0.05
SPREAD = {"r_act": "R_act", "r_combined": "R_w", "joint": "joint"}
PARTS = ("mean", "sd", "low", "high")
"""What is told of weight changes together, of each score."""
DRAWN = {"act": "R_act", "o_proj": "R_o_proj", "down_proj": "R_down_proj"}
"""What a candidate's profile shows: moment -> series."""


@dataclass(frozen=True)
class Measure:
    """A measure of a candidate at a block, as it is shown.

    Attributes:
        name: in `Scores.tables`. title: for people. shade: of its colours. meaning: for captions.
        moment: whose p-values are adjusted by Holm's method, or "".
    """

    name: str
    title: str
    shade: Shade
    meaning: str
    moment: str = ""


MEASURES = {
    one.name: one
    for one in (
        Measure("r_combined", "R_w, both tensors", "ratio", "share of ΔW inside, over chance", "combined"),
        Measure("r_act", "R_act", "ratio", "share of D inside, over chance", "act"),
        Measure("r_o_proj", "R_w of o_proj", "ratio", "share of o_proj's ΔW inside, over chance"),
        Measure("r_down_proj", "R_w of down_proj", "ratio", "share of down_proj's ΔW inside, over chance"),
        Measure("r_specific", "R_act, specific", "ratio", "R_act outside the leading clean directions"),
        Measure("z_combined", "z_w, both tensors", "signed", "R_w in sd of random subspaces", "combined"),
        Measure("z_act", "z_act", "signed", "R_act in sd of random subspaces", "act"),
        Measure("cosine", "cosine with ΔW", "plain", "mean principal cosine with ΔW's left directions"),
        Measure("rank", "rank", "plain", "dimensions of the candidate's basis"),
    )
}


def frame(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Columns of a sweep as a table; NaN becomes null."""
    table = pl.DataFrame({name: pl.Series(name, values) for name, values in columns.items()})
    return table.with_columns(cs.float().fill_nan(None))


def group_of(axis_kind: str) -> int:
    """Which ranking an axis kind belongs to."""
    return next(number for number, kinds in enumerate(GROUPS) if axis_kind in kinds)


@lru_cache(maxsize=64)
def summary(scores: Scores) -> pl.DataFrame:
    """One row for each candidate: write and mixed by place, then read, then ceilings."""
    found = frame(scores.summary())
    group = pl.col("axis_kind").map_elements(group_of, return_dtype=pl.Int64)
    unknown = (pl.col("place") == 0).cast(pl.Int64)
    return found.sort(group, unknown, "place", maintain_order=True)


def ranked(scores: Scores, changes: Sequence[Scores] = ()) -> pl.DataFrame:
    """The summary, with mean, sd and Student's 95 % interval over weight changes where there are several."""
    found = summary(scores)
    if len(changes) < 2:
        return found
    spread = frame(across(changes)).select(
        "candidate", *(f"{name}_{part}" for name in SPREAD for part in PARTS)
    )
    return found.join(spread, on="candidate", how="left", maintain_order="left")


def per_layer(scores: Scores) -> pl.DataFrame:
    """One row for each candidate and block, every measure."""
    return frame(scores.per_layer())


def percent(scores: Scores) -> pl.DataFrame:
    """Percentages of the largest R that a subspace of the candidate's rank has, and of inexact ceilings."""
    found = summary(scores)
    shares = [name for name in found.columns if name.startswith("percent_")]
    return found.select("candidate", "family", "axis_kind", "place", "rank", *shares)


def specificity(scores: Scores) -> pl.DataFrame:
    """R_act before and after the leading clean directions are taken out, and the share that is kept."""
    kept = pl.col("r_specific") / pl.col("r_act")
    left = frame({"candidate": list(scores.names), "rank_specific": scores.mean("rank_specific")})
    return (
        summary(scores)
        .join(left, on="candidate", maintain_order="left")
        .select(
            "candidate",
            "axis_kind",
            "r_act",
            "r_specific",
            kept.fill_nan(None).alias("kept"),
            "z_act",
            "z_specific",
            "rank",
            "rank_specific",
        )
    )


def points(scores: Scores, kinds: Sequence[str], top: int = 4, *, families: bool = False) -> pl.DataFrame:
    """R_act (x) against R_w of both tensors (y), the best joint scores named; ceilings always among them.

    series: the axis kind, or with `families` the family.

    Candidates without one of the two, or with 0, have no place on logarithmic axes and are left out.
    """
    return _points(scores, tuple(kinds), top, families)


@lru_cache(maxsize=64)
def _points(scores: Scores, kinds: tuple[str, ...], top: int, families: bool) -> pl.DataFrame:
    wanted = summary(scores).filter(pl.col("axis_kind").is_in([*kinds, *CEILING]))
    known = wanted.filter((pl.col("r_act") > 0) & (pl.col("r_combined") > 0))
    named = pl.col("axis_kind").is_in(list(kinds)) & (pl.col("place") <= top)
    return known.select(
        "candidate",
        pl.col("r_act").alias("x"),
        pl.col("r_combined").alias("y"),
        pl.col("family" if families else "axis_kind").alias("series"),
        (pl.col("layers_below_k") > 0).alias("hollow"),
        pl.when(named).then("candidate").alias("label"),
        "family",
        "place",
        "joint",
        "z_act",
        pl.col("z_combined").alias("z_w"),
        "rank",
    )


def undrawn(scores: Scores, kinds: Sequence[str]) -> list[str]:
    """Candidates of some kinds that logarithmic axes can't show."""
    drawn = set(points(scores, kinds)["candidate"])
    return [entry.name for entry in scores.candidates if entry.axis_kind in kinds and entry.name not in drawn]


def profile(scores: Scores, candidate: str) -> pl.DataFrame:
    """A candidate over blocks: layer, series, value, most (at its rank there), z, p, averaged."""
    row = scores.names.index(candidate)
    averaged = np.isin(scores.layers, scores.averaged)
    frames = [
        frame(
            {
                "layer": scores.layers,
                "series": [series] * len(scores.layers),
                "value": scores.tables[f"r_{moment}"][row],
                "most": scores.tables[f"most_{moment}"][row],
                "z": scores.tables[f"z_{moment}"][row],
                "p": scores.tables[f"p_{moment}"][row],
                "averaged": averaged,
            }
        )
        for moment, series in DRAWN.items()
    ]
    return pl.concat(frames)


def above(scores: Scores, candidate: str, moment: str) -> list[int]:
    """Averaged blocks where a candidate is above chance after Holm's adjustment."""
    adjusted = scores.tables[f"holm_{moment}"][scores.names.index(candidate)]
    return [int(layer) for layer in scores.layers[np.nan_to_num(adjusted, nan=1.0) < LEVEL]]


def cells(scores: Scores, measure: str) -> pl.DataFrame:
    """A measure of every candidate at every block, candidates in the order of the summary."""
    order = summary(scores).select("candidate", "axis_kind")
    count = len(scores.layers)
    flat = {
        "candidate": np.repeat(np.array(scores.names), count),
        "layer": np.tile(scores.layers, len(scores.names)),
        "value": scores.tables[measure].ravel(),
    }
    return order.join(frame(flat), on="candidate", how="left", maintain_order="left_right")


def agreement_of(changes: Sequence[Scores]) -> Stability | None:
    """How far several weight changes agree; None for one."""
    return _stability(tuple(changes)) if len(changes) > 1 else None


_stability = lru_cache(maxsize=32)(stability)


def by_change(changes: Sequence[Scores]) -> pl.DataFrame:
    """Scores of every candidate under every weight change: candidate, series, value (joint), R_act, R_w."""
    order = {name: number for number, name in enumerate(summary(changes[0])["candidate"])}
    frames = [
        summary(one).select(
            "candidate",
            "axis_kind",
            pl.lit(one.target).alias("series"),
            pl.col("joint").alias("value"),
            "r_act",
            "r_combined",
            "place",
        )
        for one in changes
    ]
    every = pl.concat(frames).filter(pl.col("axis_kind") != "ceiling")
    place = pl.col("candidate").replace_strict(order, default=len(order), return_dtype=pl.Int64)
    return every.sort(place, maintain_order=True)


def left_out(scores: Scores) -> pl.DataFrame:
    """Candidates without scores: name, block (null: could not be tried), reason."""
    rows = [(one.candidate, one.layer, one.reason) for one in scores.left_out]
    schema = {"candidate": pl.String, "block": pl.Int64, "reason": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def definitions(scores: Scores) -> pl.DataFrame:
    """What the candidates are, from their registry entries."""
    rows = [
        (one.name, one.family, one.axis_kind, one.source, ", ".join(one.needs), one.definition)
        for one in scores.candidates
    ]
    names = ("candidate", "family", "axis kind", "source", "needs", "definition")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def comparable(changes: Mapping[str, Scores | AnalysisError]) -> list[Scores]:
    """Those weight changes that have scores."""
    return [found for found in changes.values() if isinstance(found, Scores)]


def ranking_shown(table: pl.DataFrame, k: int, blocks: int) -> tuple[pl.DataFrame, dict[str, str]]:
    """The ranking with headings for people, and the format of each of its numbers.

    Args:
        table: as `ranked`. k: rank that was asked for. blocks: how many are averaged.
    """
    below = (
        pl.when(pl.col("layers_below_k") > 0)
        .then(pl.format(f"below {k} at {{}} of {blocks}", pl.col("layers_below_k")))
        .otherwise(pl.lit(""))
    )
    names = {
        "place": "place",
        "candidate": "candidate",
        "family": "family",
        "axis_kind": "kind",
        "rank": "rank",
        "r_act": "R_act",
        "z_act": "z_act",
        "r_combined": "R_w",
        "z_combined": "z_w",
        "joint": "joint",
        "gap": "gap",
        "percent_act": "% of most R_act",
        "percent_combined": "% of most R_w",
        "r_o_proj": "R_o_proj",
        "z_o_proj": "z_o_proj",
        "percent_o_proj": "% of most R_o_proj",
        "r_down_proj": "R_down_proj",
        "z_down_proj": "z_down_proj",
        "percent_down_proj": "% of most R_down_proj",
        "cosine": "cosine",
        "r_specific": "R_act, specific",
        "z_specific": "z, specific",
        "r_scales_act": "R_act, scales",
        "r_scales_combined": "R_w, scales",
        "holm_act": "Holm p, act",
        "layers_significant_act": "blocks, act",
        "holm_combined": "Holm p, w",
        "layers_significant_combined": "blocks, w",
    }
    spread = {
        f"{name}_{part}": f"{title}, {part} of ΔW"
        for name, title in SPREAD.items()
        for part in PARTS
        if f"{name}_{part}" in table.columns
    }
    columns = {name: title for name, title in names.items() if name in table.columns} | spread
    shown = table.select(
        *(pl.col(name).alias(title) for name, title in columns.items()), below.alias("rank below k")
    ).with_columns(pl.when(pl.col("place") > 0).then("place").alias("place"))
    order = [*shown.columns[:5], "rank below k", *shown.columns[5:-1]]
    return shown.select(order), _formats(shown)


def specificity_shown(table: pl.DataFrame, clean: int) -> tuple[pl.DataFrame, dict[str, str]]:
    """The specificity table with headings for people, and the format of each of its numbers."""
    shown = table.select(
        "candidate",
        pl.col("axis_kind").alias("kind"),
        pl.col("r_act").alias("R_act"),
        pl.col("r_specific").alias(f"R_act without {clean}"),
        (100 * pl.col("kept")).alias("kept, %"),
        pl.col("z_act").alias("z_act"),
        pl.col("z_specific").alias(f"z without {clean}"),
        "rank",
        pl.col("rank_specific").alias(f"rank without {clean}"),
    )
    return shown, _formats(shown)


def _formats(table: pl.DataFrame) -> dict[str, str]:
    """Three digits for every number that isn't whole."""
    return {
        name: "%.0f" if name.startswith(("%", "kept")) else "%.3g"
        for name, dtype in table.schema.items()
        if dtype.is_float()
    }


def per_tensor(scores: Scores) -> pl.DataFrame:
    """One row for each candidate, block and tensor: fraction inside, R, z, p, and the most R at its rank."""
    count = len(scores.layers)
    columns = {
        "candidate": np.repeat(np.array(scores.names), count),
        "layer": np.tile(scores.layers, len(scores.names)),
        "rank": scores.tables["rank"].ravel(),
    }
    return pl.concat(
        frame(
            columns
            | {"tensor": [tensor] * len(columns["layer"])}
            | {
                name: scores.tables[f"{name}_{tensor}"].ravel()
                for name in ("fraction", "r", "z", "p", "most")
            }
        )
        for tensor in TENSORS
    )


FILES: dict[str, Callable[[Scores], pl.DataFrame]] = {
    "summary": summary,
    "per layer": per_layer,
    "per tensor": per_tensor,
    "percent of ceiling": percent,
    "specificity": specificity,
}
"""Tables that a page hands out."""


def long(table: pl.DataFrame, series: Mapping[str, str]) -> pl.DataFrame:
    """candidate, series, value: columns of a table of candidates, one below the other, by their names."""
    return pl.concat(
        [
            table.select("candidate", pl.lit(name).alias("series"), value=column)
            for name, column in series.items()
        ]
    )
