"""One quantity against another, prompt by prompt, and named values with their intervals in order."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import DASHED, PLAIN, UNDER_NAMES, Series, hue, tip
from app.charts.template import Chart, hole, layer, layered, look_of, rows, template


def scatter(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    text: str | None = None,
    height: int = 320,
) -> Chart:
    """One point per row, both axes fitted to the points, with a line at y = 0 where the axis reaches it.

    Args:
        table: columns x, y, series; rows without x or y are left out.
        colors: a colour for each series, in legend order.
        text: a column shown when a point is pointed at.
    """
    known = table.drop_nulls(["x", "y"]).drop_nans(["x", "y"])
    zero = known.height > 0 and float(known["y"].min()) <= 0  # type: ignore[arg-type]
    data = {"points": rows(known)} | ({"zero": [{"y": 0.0}]} if zero else {})
    return Chart(_scatter(x_title, y_title, look_of(colors), palette, text, zero), data, {}, height)


@template
def _scatter(
    x_title: str, y_title: str, series: Series, palette: Palette, text: str | None, zero: bool
) -> alt.LayerChart:
    scale, axis = alt.Scale(zero=False, nice=True), alt.Axis(tickCount=6, format=PLAIN)
    x = alt.X("x:Q", title=x_title, scale=scale, axis=axis)
    y = alt.Y("y:Q", title=y_title, scale=scale, axis=axis)
    tips = [tip(text, "nominal", text)] if text else []
    tips += [tip("x", "quantitative", x_title, format=".4g")]
    tips += [tip("y", "quantitative", y_title, format=".3g"), tip("series", "nominal", "language")]
    points = layer("points").mark_point(filled=True, size=46, opacity=0.75)
    parts = [points.encode(x=x, y=y, color=hue(series, "circle"), tooltip=tips)]
    if zero:
        rule = layer("zero").mark_rule(color=palette.null, strokeDash=DASHED["strokeDash"])
        parts.insert(0, rule.encode(y=y))
    return layered(*parts)


def forest(table: pl.DataFrame, *, x_title: str, palette: Palette, format: str = ".3g") -> Chart:
    """A dot and its interval per row, from top to bottom, with a line at 0.

    Args:
        table: columns name (each once), value, low, high.
        format: of values in tooltips, in d3's notation.
    """
    names = table["name"].to_list()
    data = {"zero": [{"value": 0.0}], "rows": rows(table)}
    return Chart(_forest(x_title, palette, format), data, {"names": names}, 70 + 24 * len(names))


@template
def _forest(x_title: str, palette: Palette, format: str) -> alt.LayerChart:
    def x(field: str) -> alt.X:
        axis = alt.Axis(tickCount=6, format=PLAIN, **UNDER_NAMES)
        return alt.X(f"{field}:Q", title=x_title, axis=axis)

    axis = alt.Axis(labelLimit=230, ticks=False, domain=False)
    y = alt.Y("name:N", title=None, sort=None, scale=alt.Scale(domain=hole("names")), axis=axis)
    tips = [tip("name", "nominal", "run"), tip("value", "quantitative", x_title, format=format)]
    tips += [tip(end, "quantitative", end, format=format) for end in ("low", "high")]
    zero = layer("zero").mark_rule(color=palette.null, strokeDash=DASHED["strokeDash"])
    whole = layer("rows").mark_rule(strokeWidth=2, color=palette.pair)
    dots = layer("rows").mark_point(filled=True, size=60, opacity=1, color=palette.pair)
    return layered(
        zero.encode(x=x("value")),
        whole.encode(y=y, x=x("low"), x2=alt.X2("high"), tooltip=tips),
        dots.encode(y=y, x=x("value"), tooltip=tips),
    )
