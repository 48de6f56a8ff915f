"""Step curves: what share remains at or above a value."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import DASHED, Series, hue, tip
from app.charts.template import Chart, hole, layer, layered, look_of, rows, template


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
) -> Chart:
    """One falling step line per series, and a vertical rule at the value chosen.

    Args:
        table: columns at, series, value (share of 1), count, of.
        colors: a colour for each series, in legend order.
        at: where the rule stands, or None.
        dashed: the series drawn dashed: what the others are compared with.
        format: of `at` in tooltips and on the axis, in d3's notation.
    """
    ends = [table["at"].min(), table["at"].max()] if table.height else [0, 1]
    data = {"steps": rows(table)} | ({} if at is None else {"chosen": [{"at": at}]})
    look = _steps(x_title, y_title, look_of(colors), palette, at is not None, dashed, format)
    return Chart(look, data, {"ends": ends})


@template
def _steps(
    x_title: str,
    y_title: str,
    series: Series,
    palette: Palette,
    marked: bool,
    dashed: str | None,
    format: str,
) -> alt.LayerChart:
    scale = alt.Scale(domain=hole("ends"), nice=False, zero=False)
    x = alt.X("at:Q", title=x_title, scale=scale, axis=alt.Axis(format=format, tickCount=6))
    share = alt.Scale(domain=[0, 1.02], nice=False)
    y = alt.Y("value:Q", title=y_title, scale=share, axis=alt.Axis(format=".0%", tickCount=5))
    tips = [
        tip("series", "nominal", "prompts"),
        tip("at", "quantitative", x_title, format=format),
        tip("value", "quantitative", y_title, format=".1%"),
        tip("count", "quantitative", "how many", format="d"),
        tip("of", "quantitative", "of", format="d"),
    ]
    place = {"x": x, "y": y, "color": hue(series)}
    line = layer("steps").mark_line(interpolate="step-before", strokeWidth=2).encode(**place)
    if dashed is not None:
        chosen = f"datum.series === {dashed!r}"
        line = line.encode(strokeDash=alt.when(chosen).then(alt.value([5, 4])).otherwise(alt.value([1, 0])))
    dots = layer("steps").mark_point(filled=True, size=60, opacity=0)
    parts = [line, dots.encode(**place, tooltip=tips)]
    if marked:
        rule = layer("chosen").mark_rule(color=palette.mark, **{**DASHED, "strokeDash": [4, 3]})
        parts.append(rule.encode(x=x))
    return layered(*parts)
