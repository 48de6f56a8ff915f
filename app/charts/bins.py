"""Histograms over a linear axis, with named vertical lines and a part told apart by colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Marks, Series, hue, tip, upright
from app.charts.template import Chart, hole, layer, layered, look_of, rows, template


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
) -> Chart:
    """Bars of counts, and lines at named values.

    Args:
        table: columns low, high (bin edges), count, series.
        colors: a colour for each series, in legend order.
        marks: named vertical lines, such as the value found.
    """
    named = marks or {}
    edges = [*table["low"].to_list(), *table["high"].to_list(), *named.values()] or [0.0, 1.0]
    low, high = _padded(edges)
    top = float(table["count"].max() or 1) * (1.06 + 0.1 * len(named))  # type: ignore[arg-type]
    lines = Marks.of(named, (low + high) / 2, "at")
    look = _bins(x_title, y_title, look_of(colors), palette, len(named))
    holes = {"ends": [low, high], "top": [0, top], **lines.holes}
    return Chart(look, {"bins": rows(table), **lines.data}, holes, height)


@template
def _bins(x_title: str, y_title: str, series: Series, palette: Palette, marks: int) -> alt.LayerChart:
    def x(field: str) -> alt.X:
        scale = alt.Scale(domain=hole("ends"), nice=False, zero=False)
        axis = alt.Axis(format="~g", tickCount=8, grid=False, labelOverlap=True)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=axis)

    y_axis = alt.Axis(tickMinStep=1, format="d", tickCount=5)
    y = alt.Y("count:Q", title=y_title, scale=alt.Scale(domain=hole("top"), nice=False), axis=y_axis)
    tips = [
        tip("low", "quantitative", "from", format=".3g"),
        tip("high", "quantitative", "to", format=".3g"),
        tip("count", "quantitative", y_title),
    ]
    bars = layer("bins").mark_rect(opacity=0.8)
    place = {"x": x("low"), "x2": alt.X2("high"), "y": y, "y2": alt.Y2Datum(0)}
    parts = [bars.encode(**place, color=hue(series, "square"), tooltip=tips)]
    for number in range(marks):
        parts += upright(number, x("at"), palette)
    return layered(*parts)


def _padded(edges: Sequence[float]) -> tuple[float, float]:
    low, high = min(edges), max(edges)
    pad = 0.03 * (high - low) or 0.5
    return low - pad, high + pad
