"""Heatmaps, bars and histograms."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import PLAIN, UNDER_NAMES, Spec, channel, chart, color, layer, log_format, pick, values


def layer_heatmap(
    table: pl.DataFrame, *, x_title: str, y_title: str, value_title: str, selected: int, palette: Palette
) -> Spec:
    """All layers of one model (rows) against all layers of another (columns).

    Args:
        table: columns layer (row), other (column), value.
        selected: row to outline; a click on a cell selects its row.
    """
    axis = {"labelOverlap": True, "labelAngle": 0}
    x = channel("other", "ordinal", x_title, axis=axis)
    y = channel("layer", "ordinal", y_title, axis=axis, sort="descending")
    legend = {"orient": "top", "gradientLength": 180, "gradientThickness": 10}
    found = table["value"].drop_nulls().drop_nans()
    scale = {"range": list(palette.scheme), "domain": [found.min(), found.max()] if len(found) else [0, 1]}
    tips = [
        channel("layer", "ordinal", y_title),
        channel("other", "ordinal", x_title),
        channel("value", "quantitative", value_title, format=".4f"),
    ]
    cell = {
        "x": x,
        "y": y,
        "color": channel("value", "quantitative", value_title, scale=scale, legend=legend),
        "tooltip": tips,
    }
    cells = layer(values(table), {"type": "rect", "cursor": "pointer"}, cell, params=pick(["layer"]))
    others = table["other"].unique().sort().to_list()
    row = values([{"layer": selected, "other": v} for v in others[:1]])
    frame = {"type": "rect", "fillOpacity": 0, "stroke": palette.mark, "strokeWidth": 2}
    outline = layer(row, frame, {"y": y, "x": {"value": 0}, "x2": {"value": "width"}})
    return chart([cells, outline] if selected in table["layer"] else [cells], 440)


def stacked_bars(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str | None,
    colors: Sequence[str],
    series: Sequence[str],
    format: str = "d",
) -> Spec:
    """Horizontal bars of `value` per `name`, stacked by `series`.

    Args:
        table: columns name, series, value.
        colors, series: one colour for each series, in stacking order.
    """
    encoding = {
        "y": channel("name", "nominal", y_title, sort=None, axis={"labelLimit": 170, "ticks": False}),
        "x": channel(
            "value", "quantitative", x_title, axis={"format": format, "tickCount": 5, **UNDER_NAMES}
        ),
        "color": color(series, colors, "square"),
        "tooltip": [
            channel("name", "nominal", y_title or "name"),
            channel("series", "nominal", "part"),
            channel("value", "quantitative", x_title, format=format),
        ],
    }
    mark = {"type": "bar", "height": {"band": 0.66}}
    return chart([layer(values(table), mark, encoding)], 110 + 24 * table["name"].n_unique())


def histogram(table: pl.DataFrame, *, x_title: str, y_title: str, mean: float, palette: Palette) -> Spec:
    """Counts over log-spaced bins with a rule at the mean.

    Args:
        table: columns low, high (bin edges, > 0), count.
        mean: where the rule stands; left out when it is not positive.
    """
    edges = [*table["low"].to_list(), *table["high"].to_list()]
    scale = {"type": "log", "nice": False, "domain": [min(edges), max(edges)]} if edges else {}
    format = log_format(min(edges), max(edges)) if edges else PLAIN
    axis = {"format": format, "tickCount": 6, "grid": False, "labelOverlap": True}
    encoding = {
        "x": channel("low", "quantitative", x_title, scale=scale, axis=axis),
        "x2": {"field": "high"},
        "y": channel("count", "quantitative", y_title, axis={"tickMinStep": 1, "format": "d"}),
        "y2": {"datum": 0},
        "tooltip": [
            channel("low", "quantitative", "from", format=".3g"),
            channel("high", "quantitative", "to", format=".3g"),
            channel("count", "quantitative", y_title),
        ],
    }
    parts = [layer(values(table), {"type": "rect", "color": palette.b, "opacity": 0.75}, encoding)]
    if mean > 0:
        rule = {"type": "rule", "color": palette.mark, "strokeDash": [4, 3], "strokeWidth": 1.5}
        parts.append(
            layer(
                values([{"mean": mean}]),
                rule,
                {"x": channel("mean", "quantitative", x_title, scale=scale, axis=axis)},
            )
        )
    return chart(parts, 260)
