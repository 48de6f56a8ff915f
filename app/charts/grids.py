"""Heatmaps, bars and histograms."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from app.charts.matrix import framed, heat, legend_of, robust_ends
from app.charts.palette import Palette
from app.charts.spec import DASHED, PLAIN, UNDER_NAMES, WIDE, Series, hue, log_format, pick, tip
from app.charts.template import Chart, hole, layer, layered, rows, template, text_hole


def layer_heatmap(
    table: pl.DataFrame, *, x_title: str, y_title: str, value_title: str, selected: int, palette: Palette
) -> Chart:
    """All layers of one model (rows) against all layers of another (columns).

    Args:
        table: columns layer (row), other (column), value.
        selected: row to outline; a click on a cell selects its row.
    """
    found = table["value"]
    ends = list(robust_ends(found))
    marked = selected in table["layer"]
    data = {"cells": rows(table)}
    if marked:
        others = table["other"].unique().sort().to_list()
        data["selected"] = [{"layer": selected, "other": v} for v in others[:1]]
    look = _layers(x_title, y_title, value_title, palette, marked)
    return Chart(look, data, {"colours": ends, **legend_of(found, ends, ".3g")}, 440)


@template
def _layers(x_title: str, y_title: str, value_title: str, palette: Palette, marked: bool) -> alt.LayerChart:
    axis = alt.Axis(labelOverlap=True, labelSeparation=4, labelAngle=0, ticks=False)
    y = alt.Y("layer:O", title=y_title, axis=axis, sort="descending")
    scale = alt.Scale(range=list(palette.scheme), domain=hole("colours"), clamp=True)
    tips = [
        tip("layer", "ordinal", y_title),
        tip("other", "ordinal", x_title),
        tip("value", "quantitative", value_title, format=".4f"),
    ]
    cells = layer("cells", "cells").mark_rect(cursor="pointer").add_params(pick("layer"))
    parts = [
        cells.encode(
            x=alt.X("other:O", title=x_title, axis=axis),
            y=y,
            color=heat("value", value_title, scale),
            tooltip=tips,
        )
    ]
    if marked:
        parts += framed("selected", {"y": y, **WIDE}, palette)
    return layered(*parts)


def stacked_bars(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str | None,
    colors: Sequence[str],
    series: Sequence[str],
    format: str = "d",
) -> Chart:
    """Horizontal bars of `value` per `name`, stacked by `series`.

    Args:
        table: columns name, series, value.
        colors, series: one colour for each series, in stacking order.
    """
    look = _stacked(x_title, y_title, tuple(zip(series, colors, strict=False)), format)
    return Chart(look, {"bars": rows(table)}, {}, 110 + 24 * table["name"].n_unique())


@template
def _stacked(x_title: str, y_title: str | None, series: Series, format: str) -> alt.LayerChart:
    tips = [
        tip("name", "nominal", y_title or "name"),
        tip("series", "nominal", "part"),
        tip("value", "quantitative", x_title, format=format),
    ]
    bars = layer("bars").mark_bar(height=alt.RelativeBandSize(band=0.66))
    return layered(
        bars.encode(
            y=alt.Y("name:N", title=y_title, sort=None, axis=alt.Axis(labelLimit=170, ticks=False)),
            x=alt.X("value:Q", title=x_title, axis=alt.Axis(format=format, tickCount=5, **UNDER_NAMES)),
            color=hue(series, "square"),
            tooltip=tips,
        )
    )


def histogram(table: pl.DataFrame, *, x_title: str, y_title: str, mean: float, palette: Palette) -> Chart:
    """Counts over log-spaced bins with a rule at the mean.

    Args:
        table: columns low, high (bin edges, > 0), count.
        mean: where the rule stands; left out when it is not positive.
    """
    edges = [*table["low"].to_list(), *table["high"].to_list()]
    format = log_format(min(edges), max(edges)) if edges else PLAIN
    data = {"bins": rows(table)} | ({"mean": [{"mean": mean}]} if mean > 0 else {})
    holes = {"digits": format} | ({"ends": [min(edges), max(edges)]} if edges else {})
    return Chart(_log_bins(x_title, y_title, palette, bool(edges), mean > 0), data, holes, 260)


@template
def _log_bins(x_title: str, y_title: str, palette: Palette, known: bool, marked: bool) -> alt.LayerChart:
    def x(field: str) -> alt.X:
        scale = alt.Scale(type="log", nice=False, domain=hole("ends")) if known else alt.Scale()
        axis = alt.Axis(format=text_hole("digits"), tickCount=6, grid=False, labelOverlap=True)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=axis)

    tips = [
        tip("low", "quantitative", "from", format=".3g"),
        tip("high", "quantitative", "to", format=".3g"),
        tip("count", "quantitative", y_title),
    ]
    y = alt.Y("count:Q", title=y_title, axis=alt.Axis(tickMinStep=1, format="d"))
    bars = layer("bins").mark_rect(color=palette.b, opacity=0.75)
    parts = [bars.encode(x=x("low"), x2=alt.X2("high"), y=y, y2=alt.Y2Datum(0), tooltip=tips)]
    if marked:
        rule = layer("mean").mark_rule(color=palette.mark, **{**DASHED, "strokeDash": [4, 3]})
        parts.append(rule.encode(x=x("mean")))
    return layered(*parts)
