"""Named points: one quantity against another."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, color, layer, values


def named_points(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    name_title: str = "name",
    format: str = ".3g",
    height: int = 300,
) -> Spec:
    """One point per row.

    Args:
        table: columns x, y, name, series, label (written beside the point, or null); rows without x or y
            are left out.
        colors: a colour for each series, in legend order.
        format: of values in tooltips, in d3's notation.
    """
    known = table.drop_nulls(["x", "y"]).drop_nans(["x", "y"])
    data, labelled = values(known), values(known.drop_nulls("label"))
    x = channel("x", "quantitative", x_title, scale={"zero": True}, axis={"tickCount": 6})
    y = channel("y", "quantitative", y_title, scale={"zero": True}, axis={"tickCount": 6})
    tips = [
        channel("name", "nominal", name_title),
        channel("series", "nominal", "series"),
        channel("x", "quantitative", x_title, format=format),
        channel("y", "quantitative", y_title, format=format),
    ]
    hue = color(list(colors), list(colors.values()), "circle")
    point = {"type": "point", "filled": True, "size": 70, "opacity": 0.9}
    text = {"type": "text", "dy": -9, "fontSize": 11, "color": palette.text}
    names = {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}}
    return chart(
        [
            layer(data, point, {"x": x, "y": y, "color": hue, "tooltip": tips}),
            layer(labelled, text, names),
        ],
        height,
    )
