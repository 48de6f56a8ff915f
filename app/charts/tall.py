"""Charts with many named rows, every name readable: dots in rows, and a grid of rows × layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from app.charts.log_points import log_domain
from app.charts.matrix import framed
from app.charts.palette import Palette
from app.charts.spec import DASHED, PLAIN, UNDER_NAMES, WIDE, Series, hue, log_format, log_ticks, pick, tip
from app.charts.template import Chart, Rows, hole, layer, layered, look_of, rows, template, text_hole

ROW = 17
"""Height of a row in pixels."""
OPTIONAL = ("selected", "line", "joined", "whole")
"""Layers of `dot_rows` that not every chart has, from the lowest up."""
Shade = Literal["ratio", "signed", "plain"]


def dot_rows(
    table: pl.DataFrame,
    *,
    x_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    reference: tuple[str, float] | None = ("chance", 1.0),
    joined: bool = False,
    selected: str = "",
) -> Chart:
    """A dot for every series of every row over a logarithmic axis; a click picks the row.

    Args:
        table: columns candidate (row, in order), series, value, and optionally low, high (of an interval);
            values that are not positive are not drawn.
        colors: a colour for each series, in legend order.
        joined: draw a line from the smallest to the largest value of a row.
        selected: the row that is marked.
    """
    names = table["candidate"].unique(maintain_order=True).to_list()
    known = table.filter(pl.col("value").is_finite() & (pl.col("value") > 0))
    domain = log_domain([*known["value"].to_list(), *([] if reference is None else [reference[1]])])
    said = known.with_columns(pl.col("value").clip(*domain).alias("at"))
    whole = {"low", "high"} <= set(table.columns)
    data = {"dots": rows(said), "hits": _hits(table, list(colors))}
    if selected in names:
        data["selected"] = [{"candidate": selected}]
    if reference is not None:
        data["line"] = [{"value": reference[1], "label": reference[0]}]
    if joined:
        ends = said.group_by("candidate", maintain_order=True)
        data["joined"] = rows(ends.agg(low=pl.col("at").min(), high=pl.col("at").max()))
    if whole:
        clipped = said.drop_nulls(["low", "high"]).with_columns(pl.col("low", "high").clip(*domain))
        data["whole"] = rows(clipped)
    look = _dots(x_title, look_of(colors), palette, tuple(name for name in OPTIONAL if name in data))
    holes = {"ends": list(domain), "ticks": log_ticks(*domain), "digits": log_format(*domain), "names": names}
    return Chart(look, data, holes, 90 + ROW * len(names))


@template
def _dots(x_title: str, series: Series, palette: Palette, shown: tuple[str, ...]) -> alt.LayerChart:
    """Dots in rows, with those of the `OPTIONAL` layers that are shown."""

    def x(field: str) -> alt.X:
        axis = alt.Axis(values=hole("ticks"), format=text_hole("digits"), labelOverlap=True, **UNDER_NAMES)
        scale = alt.Scale(type="log", domain=hole("ends"), nice=False)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=axis)

    y, color = _rows(), hue(series, "circle")
    tips = [tip("candidate", "nominal", "candidate")]
    tips += [tip(f"s{number}", "nominal", name) for number, (name, _) in enumerate(series)]
    ends = {"x": x("low"), "x2": alt.X2("high"), "y": y}
    band = layer("selected").mark_rect(color=palette.mark, opacity=0.12)
    line = layer("line").mark_rule(color=palette.null, **DASHED)
    optional = {
        "selected": band.encode(y=y, **WIDE),
        "line": line.encode(x=x("value"), tooltip=[tip("label", "nominal", "line")]),
        "joined": layer("joined").mark_rule(color=palette.null, opacity=0.6).encode(**ends),
        "whole": layer("whole").mark_rule(strokeWidth=2).encode(**ends, color=color),
    }
    dots = layer("dots").mark_point(filled=True, size=40, opacity=1)
    hits = layer("hits", "hits").mark_rect(opacity=0, cursor="pointer").add_params(pick("candidate"))
    return layered(
        *(optional[name] for name in OPTIONAL if name in shown),
        dots.encode(x=x("at"), y=y, color=color),
        hits.encode(y=y, **WIDE, tooltip=tips),
    )


def _rows() -> alt.Y:
    axis = alt.Axis(
        labelLimit=190, labelFontSize=10, labelOverlap=False, ticks=False, domain=False, grid=False
    )
    return alt.Y("candidate:N", title=None, sort=None, scale=alt.Scale(domain=hole("names")), axis=axis)


def _hits(table: pl.DataFrame, series: Sequence[str]) -> Rows:
    """Rows that take clicks and tell every series in one tooltip."""
    found: dict[str, dict[str, object]] = {}
    for row in table.iter_rows(named=True):
        entry = found.setdefault(row["candidate"], {"candidate": row["candidate"]})
        value = row["value"]
        there = value is not None and np.isfinite(value)
        entry[f"s{series.index(row['series'])}"] = f"{value:.4g}" if there else "no value"
    return list(found.values())


def tall_grid(
    table: pl.DataFrame,
    *,
    value_title: str,
    palette: Palette,
    shade: Shade,
    selected: str = "",
    ends: Sequence[str] = (),
    aside: Sequence[str] = (),
    x_title: str = "Block ℓ",
) -> Chart:
    """A grid of rows × layers; a click picks row and layer, a cell without a value is an empty frame.

    Args:
        table: columns candidate (row, in order), layer, value.
        shade: "ratio": logarithmic, two-sided around 1; "signed": two-sided around 0, compressed; "plain".
        selected: the row that is outlined.
        ends: last rows of groups, under which a line is drawn.
        aside: rows that don't set the colours' ends; beyond them they have the end's colour.
    """
    names = table["candidate"].unique(maintain_order=True).to_list()
    layers = table["layer"].unique().sort().to_list()
    found = table["value"].cast(pl.Float64).fill_nan(None)
    known = ~table["candidate"].is_in(list(aside)).to_numpy()
    shades, domain, told = _shades(found.to_numpy().astype(float), known, shade)
    cells = table.with_columns(pl.Series("shade", shades).fill_nan(None), value=found)
    blank = cells.filter(pl.col("value").is_null()).select("candidate", "layer")
    data = {"cells": rows(cells.drop_nulls("value"))}
    data |= {f"end {number}": [{"candidate": name}] for number, name in enumerate(ends)}
    if blank.height:
        data["blank"] = rows(blank.with_columns(said=pl.lit("no value")))
    if selected in names:
        data["selected"] = [{"candidate": selected}]
    shown = (shade != "plain", blank.height > 0, len(ends), selected in names)
    look = _grid(x_title, value_title, palette, shown)
    holes = {"names": names, "layers": layers, "colours": domain, "told": told}
    return Chart(look, data, holes, 110 + ROW * len(names))


@template
def _grid(
    x_title: str, value_title: str, palette: Palette, shown: tuple[bool, bool, int, bool]
) -> alt.LayerChart:
    """Rows × layers.

    Args:
        shown: whether colours have two sides, whether cells without a value, how many lines under groups,
            whether a row is outlined.
    """
    two, blank, ends, marked = shown
    y = _rows()
    axis = alt.Axis(
        labelOverlap=True, labelSeparation=4, labelAngle=0, ticks=False, domain=False, **UNDER_NAMES
    )
    x = alt.X("layer:O", title=x_title, axis=axis, scale=alt.Scale(domain=hole("layers")))
    colours = [palette.a, palette.scheme[0], palette.b] if two else list(palette.scheme)
    scale = alt.Scale(domain=hole("colours"), range=colours, interpolate="rgb", clamp=True)
    long = alt.ExprRef("max(60, min(180, width - 24))")
    ticks: dict[str, Any] = {"values": hole("colours")} if two else {}
    legend = alt.Legend(
        orient="top", gradientLength=long, gradientThickness=10, labelExpr=text_hole("told"), **ticks
    )
    color = alt.Color("shade:Q", title=value_title, scale=scale, legend=legend)
    where = [tip("candidate", "nominal"), tip("layer", "ordinal", x_title)]
    tips = [*where, tip("value", "quantitative", value_title, format=".4g")]
    cells = layer("cells", "cells").mark_rect(cursor="pointer").add_params(pick("candidate", "layer"))
    parts = [cells.encode(x=x, y=y, color=color, tooltip=tips)]
    if blank:
        frame = layer("blank").mark_rect(fillOpacity=0, stroke=palette.null, strokeOpacity=0.25)
        parts.append(frame.encode(x=x, y=y, tooltip=[*where, tip("said", "nominal", value_title)]))
    for number in range(ends):
        rule = layer(f"end {number}").mark_rule(color=palette.mark, strokeWidth=1.5)
        parts.append(rule.encode(y=y.bandPosition(1), **WIDE))
    if marked:
        parts += framed("selected", {"y": y, **WIDE}, palette)
    return layered(*parts)


def _shades(found: np.ndarray, counts: np.ndarray, shade: Shade) -> tuple[np.ndarray, list[float], str]:
    """What is coloured, the ends (and middle) of its scale, and how the legend writes it.

    Args:
        counts: which values set the ends.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if shade == "ratio":
            shades, back = np.log2(found), "format(pow(2, datum.value), '.2~g')"
        elif shade == "signed":
            shades = np.sign(found) * np.log1p(np.abs(found))
            back = "format((datum.value < 0 ? -1 : 1) * (exp(abs(datum.value)) - 1), '.2~g')"
        else:
            known = found[np.isfinite(found) & counts]
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
            low, high = (min(low, 0.0), high or 1.0) if low == high else (low, high)
            steps = [low + (high - low) * step / 5 for step in range(6)]
            return found, steps, f"format(datum.value, '{PLAIN}')"
    # Both sides reach as far as the larger one above the middle: what lies far below is one colour.
    known = shades[np.isfinite(shades) & counts]
    most = max(float(known.max(initial=0.0)), 1.0)
    return np.where(np.isneginf(shades), -most, shades), [-most, 0.0, most], back
