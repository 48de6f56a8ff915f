"""Named points: one quantity against another."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Series, hue, tip
from app.charts.template import Chart, layer, layered, look_of, rows, template


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
) -> Chart:
    """One point per row.

    Args:
        table: columns x, y, name, series, label (written beside the point, or null); rows without x or y
            are left out.
        colors: a colour for each series, in legend order.
        format: of values in tooltips, in d3's notation.
    """
    known = table.drop_nulls(["x", "y"]).drop_nans(["x", "y"])
    data = {"points": rows(known), "labels": rows(known.drop_nulls("label"))}
    return Chart(_points((x_title, y_title, name_title), look_of(colors), palette, format), data, {}, height)


@template
def _points(titles: tuple[str, str, str], series: Series, palette: Palette, format: str) -> alt.LayerChart:
    across, up, name = titles
    x = alt.X("x:Q", title=across, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=6))
    y = alt.Y("y:Q", title=up, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=6))
    tips = [
        tip("name", "nominal", name),
        tip("series", "nominal", "series"),
        tip("x", "quantitative", across, format=format),
        tip("y", "quantitative", up, format=format),
    ]
    points = layer("points").mark_point(filled=True, size=70, opacity=0.9)
    text = layer("labels").mark_text(dy=-9, fontSize=11, color=palette.text)
    return layered(
        points.encode(x=x, y=y, color=hue(series, "circle"), tooltip=tips),
        text.encode(x=x, y=y, text=alt.Text("label:N")),
    )
