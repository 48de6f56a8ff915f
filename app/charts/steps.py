"""Step curves: what share remains at or above a value."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, color, layer, values


def remaining_curve(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    at: float | None = None,
    dashed: str | None = None,
    format: str = ".2f",
) -> Spec:
    """One falling step line per series, and a vertical rule at the value chosen.

    Args:
        table: columns at, series, value (share of 1), count, of.
        colors: a colour for each series, in legend order.
        at: where the rule stands, or None.
        dashed: the series drawn dashed: what the others are compared with.
        format: of `at` in tooltips and on the axis, in d3's notation.
    """
    ends = [table["at"].min(), table["at"].max()] if table.height else [0, 1]
    scale = {"domain": ends, "nice": False, "zero": False}
    x = channel("at", "quantitative", x_title, scale=scale, axis={"format": format, "tickCount": 6})
    share = {"domain": [0, 1.02], "nice": False}
    y = channel("value", "quantitative", y_title, scale=share, axis={"format": ".0%", "tickCount": 5})
    hue = color(list(colors), list(colors.values()))
    dash = {"condition": {"test": f"datum.series === {dashed!r}", "value": [5, 4]}, "value": [1, 0]}
    line = {"type": "line", "interpolate": "step-before", "strokeWidth": 2}
    encoding = {"x": x, "y": y, "color": hue} | ({"strokeDash": dash} if dashed is not None else {})
    tips = [
        channel("series", "nominal", "prompts"),
        channel("at", "quantitative", x_title, format=format),
        channel("value", "quantitative", y_title, format=".1%"),
        channel("count", "quantitative", "how many", format="d"),
        channel("of", "quantitative", "of", format="d"),
    ]
    dots = {"type": "point", "filled": True, "size": 60, "opacity": 0}
    parts = [layer(values(table), line, encoding)]
    parts.append(layer(values(table), dots, {"x": x, "y": y, "color": hue, "tooltip": tips}))
    if at is not None:
        rule = {"type": "rule", "color": palette.mark, "strokeDash": [4, 3], "strokeWidth": 1.5}
        parts.append(layer(values([{"at": at}]), rule, {"x": x}))
    return chart(parts, 300)
