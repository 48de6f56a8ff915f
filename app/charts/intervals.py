"""Values with their intervals, one row per part and one dot per series in it."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import DASHED, PLAIN, UNDER_NAMES, Series, hue, tip
from app.charts.template import Chart, hole, layer, layered, look_of, rows, template


def interval_dots(
    table: pl.DataFrame,
    *,
    x_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    reference: tuple[str, float] | None = None,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
) -> Chart:
    """A dot with its interval for every series of every row.

    Args:
        table: columns name (row, in order), series, value, low, high (may be null), n.
        colors: a colour for each series, in legend order; their dots stand below each other in a row.
        reference: a named vertical line, such as no difference.
        percent: values are shares, written in per cent.
        limits: what the axis must hold at least.
    """
    names = list(dict.fromkeys(table["name"].to_list()))
    data = {"whole": rows(table.drop_nulls(["low", "high"])), "dots": rows(table)}
    if reference is not None:
        data["line"] = [{"value": reference[1], "label": reference[0]}]
    holes = {"names": names, "ends": _domain(table, reference, limits)}
    look = _dots(x_title, look_of(colors), palette, reference is not None, percent)
    return Chart(look, data, holes, 70 + len(names) * (12 + 12 * len(colors)))


@template
def _dots(x_title: str, series: Series, palette: Palette, line: bool, percent: bool) -> alt.LayerChart:
    def x(field: str) -> alt.X:
        axis = alt.Axis(tickCount=6, format=".0%" if percent else PLAIN, **UNDER_NAMES)
        return alt.X(f"{field}:Q", title=x_title, scale=alt.Scale(domain=hole("ends"), nice=False), axis=axis)

    axis = alt.Axis(labelLimit=170, ticks=False, grid=False)
    offset = alt.Scale(domain=[name for name, _ in series])
    precise = ".1%" if percent else ".4g"
    tips = [tip("name", "nominal", "prompts"), tip("series", "nominal", "who")]
    tips += [tip(end, "quantitative", end, format=precise) for end in ("value", "low", "high")]
    tips.append(tip("n", "quantitative", "prompts with a value"))
    place = {
        "y": alt.Y("name:N", title=None, sort=None, scale=alt.Scale(domain=hole("names")), axis=axis),
        "yOffset": alt.YOffset("series:N", title=None, scale=offset, sort=None),
        "color": hue(series, "circle"),
        "tooltip": tips,
    }
    parts: list[alt.Chart] = []
    if line:
        rule = layer("line").mark_rule(color=palette.null, **DASHED)
        parts.append(rule.encode(x=x("value"), tooltip=[tip("label", "nominal", "line")]))
    bar = layer("whole").mark_rule(strokeWidth=2.5, opacity=0.75)
    parts.append(bar.encode(**place, x=x("low"), x2=alt.X2("high")))
    dot = layer("dots").mark_point(filled=True, size=55, opacity=1)
    parts.append(dot.encode(**place, x=x("value")))
    return layered(*parts)


def _domain(
    table: pl.DataFrame, reference: tuple[str, float] | None, limits: tuple[float, float] | None
) -> list[float]:
    found = [*(limits or ()), *([] if reference is None else [reference[1]])]
    for name in ("value", "low", "high"):
        found += table[name].cast(pl.Float64).drop_nulls().drop_nans().to_list()
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.5
    return [low - pad, high + pad]
