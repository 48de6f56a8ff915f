"""One quantity against another, prompt by prompt, and named values with their intervals in order."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import PLAIN, UNDER_NAMES, Spec, channel, chart, color, layer, values


def scatter(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    text: str | None = None,
    height: int = 320,
) -> Spec:
    """One point per row, both axes fitted to the points, with a line at y = 0 where the axis reaches it.

    Args:
        table: columns x, y, series; rows without x or y are left out.
        colors: a colour for each series, in legend order.
        text: a column shown when a point is pointed at.
    """
    known = table.drop_nulls(["x", "y"]).drop_nans(["x", "y"])
    scale = {"zero": False, "nice": True}
    x = channel("x", "quantitative", x_title, scale=scale, axis={"tickCount": 6, "format": PLAIN})
    y = channel("y", "quantitative", y_title, scale=scale, axis={"tickCount": 6, "format": PLAIN})
    tips = [channel(text, "nominal", text)] if text else []
    tips += [channel("x", "quantitative", x_title, format=".4g")]
    tips += [channel("y", "quantitative", y_title, format=".3g"), channel("series", "nominal", "language")]
    hue = color(list(colors), list(colors.values()), "circle")
    point = {"type": "point", "filled": True, "size": 46, "opacity": 0.75}
    parts = [layer(values(known), point, {"x": x, "y": y, "color": hue, "tooltip": tips})]
    if known.height and float(known["y"].min()) <= 0:  # type: ignore[arg-type]
        rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4]}
        parts.insert(0, layer(values([{"y": 0.0}]), rule, {"y": y}))
    return chart(parts, height)


def forest(table: pl.DataFrame, *, x_title: str, palette: Palette, format: str = ".3g") -> Spec:
    """A dot and its interval per row, from top to bottom, with a line at 0.

    Args:
        table: columns name (each once), value, low, high.
        format: of values in tooltips, in d3's notation.
    """
    names = table["name"].to_list()
    axis = {"labelLimit": 230, "ticks": False, "domain": False}
    y = channel("name", "nominal", None, sort=None, scale={"domain": names}, axis=axis)
    x = channel("value", "quantitative", x_title, axis={"tickCount": 6, "format": PLAIN, **UNDER_NAMES})
    tips = [channel("name", "nominal", "run"), channel("value", "quantitative", x_title, format=format)]
    tips += [channel(end, "quantitative", end, format=format) for end in ("low", "high")]
    zero = {"type": "rule", "color": palette.null, "strokeDash": [5, 4]}
    line = {"type": "rule", "strokeWidth": 2, "color": palette.pair}
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 1, "color": palette.pair}
    data, ends = values(table), {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    parts = [
        layer(values([{"value": 0.0}]), zero, {"x": x}),
        layer(data, line, {"y": y, **ends, "tooltip": tips}),
        layer(data, dot, {"y": y, "x": x, "tooltip": tips}),
    ]
    return chart(parts, 70 + 24 * len(names))
