"""Vertical bars in a given order, each with its interval, and reference lines across them."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Series, across, angle_of, hue, tip
from app.charts.template import Chart, hole, layer, layered, look_of, rows, template


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
) -> Chart:
    """One bar per row, in the order of the rows, with a line from `low` to `high`.

    Args:
        table: columns name (each once), value, low, high (may be null: no interval), series.
        colors: a colour for each series, in legend order.
        references: named horizontal lines, such as 100 %.
        format: of values in tooltips, in d3's notation.
    """
    lines = references or {}
    data = {"bars": rows(table), "whole": rows(table.drop_nulls(["low", "high"]))}
    data |= {f"line {i}": [{"at": at, "label": name}] for i, (name, at) in enumerate(lines.items())}
    look = _bars(x_title, y_title, look_of(colors), palette, len(lines), format)
    names = table["name"].to_list()
    holes = {"names": names, "ends": _domain(table, lines), "angle": angle_of(names)}
    return Chart(look, data, holes, height)


@template
def _bars(
    x_title: str, y_title: str, series: Series, palette: Palette, lines: int, format: str
) -> alt.LayerChart:
    labels = alt.Axis(labelAngle=hole("angle"), labelOverlap=True, ticks=False)
    x = alt.X("name:N", title=x_title, scale=alt.Scale(domain=hole("names")), sort=None, axis=labels)

    def y(field: str) -> alt.Y:
        scale = alt.Scale(domain=hole("ends"), nice=False)
        return alt.Y(f"{field}:Q", title=y_title, scale=scale, axis=alt.Axis(tickCount=6))

    tips = [tip("name", "nominal", x_title), tip("value", "quantitative", y_title, format=format)]
    tips += [tip(end, "quantitative", end, format=format) for end in ("low", "high")]
    bars = layer("bars").mark_bar(width=alt.RelativeBandSize(band=0.7))
    whole = layer("whole").mark_rule(color=palette.mark, strokeWidth=1.5)
    parts = [
        bars.encode(x=x, y=y("value"), color=hue(series, "square"), tooltip=tips),
        whole.encode(x=x, y=y("low"), y2=alt.Y2("high"), tooltip=tips),
    ]
    for number in range(lines):
        parts += across(f"line {number}", y("at"), palette)
    return layered(*parts)


def _domain(table: pl.DataFrame, references: Mapping[str, float]) -> list[float]:
    """From 0 (or below) to the longest interval or reference, with room above."""
    found = [0.0, *references.values()]
    for name in ("value", "low", "high"):
        found += table[name].cast(pl.Float64).drop_nulls().drop_nans().to_list()
    low, high = min(found), max(found)
    pad = 0.08 * (high - low) or 1.0
    return [low - pad if low < 0 else 0.0, high + pad]
