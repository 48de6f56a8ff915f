"""Histograms over a linear axis, with named vertical lines and a part told apart by colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, color, layer, values


def counts(found: np.ndarray, least: float, most: float, bins: int = 30) -> pl.DataFrame:
    """Columns low, high, count of equal bins from `least` to `most`; values outside are left out."""
    if not least < most:
        least, most = least - 0.5, most + 0.5
    number, edges = np.histogram(found, bins=bins, range=(least, most))
    return pl.DataFrame({"low": edges[:-1], "high": edges[1:], "count": number})


def histogram(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    marks: Mapping[str, float] | None = None,
    height: int = 260,
) -> Spec:
    """Bars of counts, and lines at named values.

    Args:
        table: columns low, high (bin edges), count, series.
        colors: a colour for each series, in legend order.
        marks: named vertical lines, such as the value found.
    """
    at = list((marks or {}).values())
    edges = [*table["low"].to_list(), *table["high"].to_list(), *at] or [0.0, 1.0]
    low, high = _padded(edges)
    scale = {"domain": [low, high], "nice": False, "zero": False}
    axis = {"format": "~g", "tickCount": 8, "grid": False, "labelOverlap": True}
    x = channel("low", "quantitative", x_title, scale=scale, axis=axis)
    top = float(table["count"].max() or 1) * (1.06 + 0.1 * len(at))  # type: ignore[arg-type]
    y_scale = {"domain": [0, top], "nice": False}
    y_axis = {"tickMinStep": 1, "format": "d", "tickCount": 5}
    y = channel("count", "quantitative", y_title, scale=y_scale, axis=y_axis)
    tips = [
        channel("low", "quantitative", "from", format=".3g"),
        channel("high", "quantitative", "to", format=".3g"),
        channel("count", "quantitative", y_title),
    ]
    hue = color(list(colors), list(colors.values()), "square")
    bars = {"x": x, "x2": {"field": "high"}, "y": y, "y2": {"datum": 0}, "color": hue, "tooltip": tips}
    parts = [layer(values(table), {"type": "rect", "opacity": 0.8}, bars)]
    for number, (name, value) in enumerate((marks or {}).items()):
        data, place = values([{"at": value, "label": name}]), {**x, "field": "at"}
        rule = {"type": "rule", "color": palette.mark, "strokeDash": [5, 4], "strokeWidth": 1.5}
        side = {"align": "left", "dx": 5} if value <= (low + high) / 2 else {"align": "right", "dx": -5}
        text = {"type": "text", "baseline": "top", "fontSize": 11, "color": palette.text, **side}
        said = {"x": place, "y": {"value": 4 + 15 * number}, "text": {"field": "label", "type": "nominal"}}
        parts += [layer(data, rule, {"x": place}), layer(data, text, said)]
    return chart(parts, height)


def _padded(edges: Sequence[float]) -> tuple[float, float]:
    low, high = min(edges), max(edges)
    pad = 0.03 * (high - low) or 0.5
    return low - pad, high + pad
