"""Named values on both sides of 0 as horizontal bars, from top to bottom, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import DASHED, PLAIN, UNDER_NAMES, Series, hue, tip
from app.charts.template import Chart, hole, layer, layered, look_of, rows, template

__all__ = ["signed_bars"]


def signed_bars(
    table: pl.DataFrame,
    *,
    x_title: str,
    name_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    reach: float | None = None,
    format: str = ".3g",
) -> Chart:
    """One bar per row with a line from `low` to `high`, and dashed lines at ±`reach`.

    Args:
        table: columns name (each once), value, low, high (may be null: no interval), series.
        colors: a colour for each series, in legend order.
        format: of values in tooltips, in d3's notation.
    """
    names = table["name"].to_list()
    ends = pl.concat([table[c].cast(pl.Float64) for c in ("value", "low", "high")]).drop_nulls().to_list()
    most = 1.04 * max((abs(end) for end in [*ends, reach or 0.0]), default=0.0) or 1.0
    lines = [] if reach is None else [{"value": -reach}, {"value": reach}]
    data = {"bars": rows(table), "whole": rows(table.drop_nulls(["low", "high"]))}
    data |= {"zero": [{"value": 0.0}], "reach": lines}
    holes = {"names": names, "ends": [-most, most]}
    look = _bars(x_title, name_title, look_of(colors), palette, format)
    return Chart(look, data, holes, 70 + 19 * len(names))


@template
def _bars(x_title: str, name_title: str, series: Series, palette: Palette, format: str) -> alt.LayerChart:
    def x(field: str) -> alt.X:
        axis = alt.Axis(tickCount=6, format=PLAIN, **UNDER_NAMES)
        scale = alt.Scale(domain=hole("ends"), nice=False)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=axis)

    axis = alt.Axis(labelLimit=170, ticks=False, domain=False, labelOverlap=False)
    y = alt.Y("name:N", title=None, sort=None, scale=alt.Scale(domain=hole("names")), axis=axis)
    tips = [tip("name", "nominal", name_title), tip("value", "quantitative", x_title, format=format)]
    tips += [tip(end, "quantitative", end, format=format) for end in ("low", "high")]
    tips.append(tip("series", "nominal", "reading"))
    bars = layer("bars").mark_bar(height=alt.RelativeBandSize(band=0.72))
    return layered(
        bars.encode(x=x("value"), y=y, color=hue(series, "square"), tooltip=tips),
        layer("zero").mark_rule(color=palette.null).encode(x=x("value")),
        layer("reach").mark_rule(color=palette.null, **DASHED).encode(x=x("value")),
        layer("whole")
        .mark_rule(color=palette.mark, strokeWidth=1.5)
        .encode(x=x("low"), x2=alt.X2("high"), y=y, tooltip=tips),
    )
