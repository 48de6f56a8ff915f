"""Vertical bars in a given order, each with its interval, and reference lines across them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, color, layer, values


def interval_bars(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    references: Mapping[str, float] | None = None,
    format: str = ".3g",
    height: int = 300,
) -> Spec:
    """One bar per row, in the order of the rows, with a line from `low` to `high`.

    Args:
        table: columns name (each once), value, low, high (may be null: no interval), series.
        colors: a colour for each series, in legend order.
        references: named horizontal lines, such as 100 %.
        format: of values in tooltips, in d3's notation.
    """
    names = table["name"].to_list()
    axis = {"labelAngle": 0, "labelOverlap": True, "ticks": False}
    x = channel("name", "nominal", x_title, scale={"domain": names}, sort=None, axis=axis)
    limits = _domain(table, references or {})
    scale = {"domain": limits, "nice": False}
    y = channel("value", "quantitative", y_title, scale=scale, axis={"tickCount": 6})
    tips = [channel("name", "nominal", x_title), channel("value", "quantitative", y_title, format=format)]
    tips += [channel(end, "quantitative", end, format=format) for end in ("low", "high")]
    hue = color(list(colors), list(colors.values()), "square")
    bar = {"type": "bar", "width": {"band": 0.7}}
    parts = [layer(values(table), bar, {"x": x, "y": y, "color": hue, "tooltip": tips})]
    whole = values(table.drop_nulls(["low", "high"]))
    ends = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    rule = {"type": "rule", "color": palette.mark, "strokeWidth": 1.5}
    parts.append(layer(whole, rule, {"x": x, **ends, "tooltip": tips}))
    for name, at in (references or {}).items():
        parts += _reference(name, at, y, palette)
    return chart(parts, height)


def _domain(table: pl.DataFrame, references: Mapping[str, float]) -> list[float]:
    """From 0 (or below) to the longest interval or reference, with room above."""
    found = [0.0, *references.values()]
    for name in ("value", "low", "high"):
        found += table[name].cast(pl.Float64).drop_nulls().drop_nans().to_list()
    low, high = min(found), max(found)
    pad = 0.08 * (high - low) or 1.0
    return [low - pad if low < 0 else 0.0, high + pad]


def _reference(name: str, at: float, y: Spec, palette: Palette) -> list[Spec]:
    """A dashed line with its name at the right end."""
    data, place = values([{"at": at, "label": name}]), {**y, "field": "at"}
    rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4], "strokeWidth": 1.5}
    text = {"type": "text", "align": "right", "baseline": "bottom", "dy": -3, "fontSize": 11}
    said = {"x": {"value": "width"}, "y": place, "text": {"field": "label", "type": "nominal"}}
    return [
        layer(data, rule, {"y": place}),
        layer(data, {**text, "color": palette.null}, said),
    ]
