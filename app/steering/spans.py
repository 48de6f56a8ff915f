"""Steering and ablation over the number k of leading directions, from stored runs that differ by k alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from app.charts.lines import numeric_lines
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.stored import opened_run
from app.live.jobs import JobResult
from app.steering import words as say

SERIES = {
    ("ablate", "shift"): "shift, k taken away",
    ("ablate", "kl"): "side effect, k taken away",
    ("ablate_random", "shift"): "shift, random spans taken away",
    ("ablate_random", "kl"): "side effect, random spans taken away",
}


def alike(opened: Opened, condition: Mapping[str, Any]) -> dict[int, str]:
    """Run of every k that is stored under a condition's other settings."""
    wanted = _but_dims(condition)
    found: dict[int, str] = {}
    for other, summary in live_view.runs_of(opened, "steering"):
        if other["direction"] == "leading" and _but_dims(other) == wanted:
            found.setdefault(int(other.get("dims", 1)), str(summary["run_id"]))
    return dict(sorted(found.items()))


def _but_dims(condition: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in condition.items() if k != "dims"}, sort_keys=True)


def rows(tables: Mapping[int, pl.DataFrame]) -> pl.DataFrame:
    """k, series, value, low, high in nats on validation prompts, from the main tables of runs by k.

    With k = 1 there are no random spans.
    """
    parts = []
    for k, table in tables.items():
        mine = table.filter(pl.col("split") == "validation", pl.col("alpha") == 0.0)
        for (series, value), name in SERIES.items():
            row = mine.filter(pl.col("series") == series)
            ends = {"value": value, "low": f"{value}_low", "high": f"{value}_high"}
            parts.append(
                row.select(k=pl.lit(k), series=pl.lit(name), **{n: pl.col(c) for n, c in ends.items()})
            )
    return pl.concat(parts)


def spans_panel(opened: Opened, result: JobResult) -> Panel | None:
    """What taking k leading directions away does over k; None where fewer than two k were run."""
    if result.condition["direction"] != "leading":
        return None
    runs = alike(opened, result.condition)
    if len(runs) < 2:
        return None
    table = rows({k: opened_run(opened, run_id).table for k, run_id in runs.items()})
    present = table["series"].unique().to_list()

    def draw(palette: Palette) -> Chart:
        hues = (palette.b, palette.mark, palette.null, palette.series[2])
        colors = dict(zip(SERIES.values(), hues, strict=True))
        return numeric_lines(
            table.with_columns(x=pl.col("k").cast(pl.Float64)),
            x_title="leading directions taken away, k",
            y_title="nats",
            colors={name: hue for name, hue in colors.items() if name in present},
            palette=palette,
            x_format="d",
            marks={"shown": float(result.condition.get("dims", 1))},
        )

    condition = result.condition
    caption = (
        f"own − B Bᵀ own, B the first k leading directions of {condition['source']} − {condition['target']} "
        f"from {condition['leading']} on. Shift: change of log p(wanted) − log p(others); side effect: KL on "
        f"the prompts that should stay. Random: mean over {condition['draws']} random spans of k. Each k is "
        "a run of its own; bootstrap intervals of each by itself."
    )
    code = "\n".join(
        (
            "from app.steering import spans",
            "from store.runs import RunLog",
            "",
            f"runs = {runs!r}",
            f"table = spans.rows({{k: RunLog({opened.path!r}).open(run).table for k, run in runs.items()}})",
        )
    )
    models = (str(condition["target"]), str(condition["source"]))
    return Panel("steer-spans", spans_title(table), table, draw, code, caption, models, False)


def spans_title(table: pl.DataFrame) -> str:
    """Shift and side effect at the smallest and the largest k, with their intervals."""
    ks = sorted(table["k"].unique().to_list())
    told = []
    for k in (ks[0], ks[-1]):
        values = [
            say.signed({"shift": row["value"], "low": row["low"], "high": row["high"]})
            for name in (SERIES["ablate", "shift"], SERIES["ablate", "kl"])
            for row in table.filter(pl.col("k") == k, pl.col("series") == name).iter_rows(named=True)
        ]
        told.append(f"at k = {k} {values[0]}, side effect {values[1]}")
    return f"Change of the log odds when leading directions are taken away: {'; '.join(told)}"
