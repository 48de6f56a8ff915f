"""Lines over a numeric axis, linear or logarithmic, and values with the range that chance gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import PLAIN, UNDER_NAMES, Marks, Series, hue, log_format, tip, upright
from app.charts.template import Chart, Rows, hole, layer, layered, look_of, rows, template, text_hole


def numeric_lines(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    log_x: bool = False,
    log_y: bool = False,
    x_format: str = PLAIN,
    marks: Mapping[str, float] | None = None,
    null: pl.DataFrame | None = None,
    floor: float | None = None,
    limits: tuple[float, float] | None = None,
    height: int = 300,
) -> Chart:
    """One line per series over x, with a band where a row has low and high.

    Args:
        table: columns x, series, value, and optionally low, high.
        colors: a colour for each series, in legend order.
        marks: named vertical lines, such as the value chosen.
        null: columns x, low, high of the range expected when there is nothing to find.
        x_format: of the horizontal axis, in d3's notation.
        floor: the vertical axis does not go below this, whatever the values.
        limits: ends of the vertical axis, whatever the values.
    """
    named = marks or {}
    across = _across(table, named)
    room = 0.06 + 0.075 * len(named)  # names of the marks stand above the lines
    up = _up(table, null, log_y, floor, room)
    shaded = null is not None and null.height > 0
    data = {"lines": rows(table)}
    if null is not None and shaded:
        data["null"] = rows(null)
    banded = {"low", "high"} <= set(table.columns)
    if banded:
        data["band"] = rows(table.drop_nulls(["low", "high"]))
    low, high = across
    lines = Marks.of(named, (low * high) ** 0.5 if log_x else (low + high) / 2, "x")
    digits = log_format(*up) if log_y else ".4~g"
    ends = up if limits is None else list(limits)
    look = _lines(
        (x_title, y_title), look_of(colors), palette, (log_x, log_y), x_format, (shaded, banded, len(named))
    )
    holes = {"across": across, "up": ends, "digits": digits, **lines.holes}
    return Chart(look, data | lines.data, holes, height)


@template
def _lines(
    titles: tuple[str, str],
    series: Series,
    palette: Palette,
    logs: tuple[bool, bool],
    x_format: str,
    shown: tuple[bool, bool, int],
) -> alt.LayerChart:
    """Lines over a number.

    Args:
        titles: of x and y. logs: whether x and y are logarithmic. shown: null, intervals, how many marks.
    """
    shaded, banded, marks = shown
    kind: dict[str, Any] = {"type": "log"} if logs[0] else {}
    x_scale = alt.Scale(domain=hole("across"), nice=False, zero=False, **kind)
    x_axis = alt.Axis(grid=False, labelOverlap=True, tickCount=8, format=x_format)
    x = alt.X("x:Q", title=titles[0], scale=x_scale, axis=x_axis)

    def y(field: str) -> alt.Y:
        kind: dict[str, Any] = {"type": "log"} if logs[1] else {"zero": False}
        scale = alt.Scale(domain=hole("up"), nice=False, **kind)
        axis = alt.Axis(tickCount=5 if logs[1] else 6, format=text_hole("digits"))
        return alt.Y(f"{field}:Q", title=titles[1], scale=scale, axis=axis)

    parts: list[alt.Chart] = []
    if shaded:
        area = layer("null").mark_area(opacity=0.3, color=palette.null, clip=True)
        parts.append(area.encode(x=x, y=y("low"), y2=alt.Y2("high")))
    color = hue(series)
    if banded:
        area = layer("band").mark_area(opacity=0.22, clip=True)
        parts.append(area.encode(x=x, y=y("low"), y2=alt.Y2("high"), color=color))
    place = {"x": x, "y": y("value"), "color": color}
    tips = [
        tip("series", "nominal", "series"),
        tip("x", "quantitative", titles[0], format=".4g"),
        tip("value", "quantitative", titles[1], format=".4g"),
    ]
    parts.append(layer("lines").mark_line(strokeWidth=2, clip=True).encode(**place))
    dots = layer("lines").mark_point(filled=True, size=26, opacity=1, clip=True)
    parts.append(dots.encode(**place, tooltip=tips))
    for number in range(marks):
        parts += upright(number, x, palette)
    return layered(*parts)


def _across(table: pl.DataFrame, marks: Mapping[str, float]) -> list[float]:
    found = [*table["x"].drop_nulls().to_list(), *marks.values()] or [1.0]
    return [min(found), max(found)]


def _up(
    table: pl.DataFrame, null: pl.DataFrame | None, log: bool, floor: float | None, room: float
) -> list[float]:
    """Ends of the vertical axis, with room above."""
    found: list[float] = []
    for frame in (table, null):
        for name in ("value", "low", "high"):
            if frame is not None and name in frame.columns:
                found += frame[name].cast(pl.Float64).drop_nulls().drop_nans().to_list()
    found = [v for v in found if v > 0] if log else found
    low, high = (min(found), max(found)) if found else ((0.1, 1.0) if log else (0.0, 1.0))
    low = low if floor is None else max(low, floor)
    if log:
        return [low / 1.1, high * max(high / low, 1.3) ** room]
    size = high - low or max(abs(high), 1e-6)
    return [low - 0.06 * size, high + room * size]


def value_dots(table: pl.DataFrame, *, x_title: str, palette: Palette, limits: tuple[float, float]) -> Chart:
    """A dot per row with its interval, over the range that chance gives it in grey.

    Args:
        table: columns name (each once), value, low, high (its interval, may be null), null_low, null_high
            (range of chance, may be null).
        limits: the horizontal axis; a value outside is drawn at the end and written out.
    """
    least, most = limits
    names = table["name"].to_list()

    def inside(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.Float64).fill_nan(None).clip(least, most)

    def known(low: str, high: str) -> Rows:
        both = frame.with_columns(inside(low).alias("from"), inside(high).alias("to"))
        return rows(both.drop_nulls(["from", "to"]))

    frame = table.with_columns(inside("value").alias("at"), said=_said())
    data = {
        "null": known("null_low", "null_high"),
        "whole": known("low", "high"),
        "dots": rows(frame.drop_nulls("at")),
        "said": rows(frame),
    }
    look = _values(x_title, palette)
    return Chart(look, data, {"ends": [least, most], "names": names}, 90 + 24 * len(names))


@template
def _values(x_title: str, palette: Palette) -> alt.LayerChart:
    def x(field: str) -> alt.X:
        axis = alt.Axis(tickCount=6, format=PLAIN, **UNDER_NAMES)
        return alt.X(f"{field}:Q", title=x_title, scale=alt.Scale(domain=hole("ends"), nice=False), axis=axis)

    axis = alt.Axis(labelLimit=190, ticks=False, labelOverlap=False)
    y = alt.Y("name:N", title=None, sort=None, scale=alt.Scale(domain=hole("names")), axis=axis)
    tips = [tip("name", "nominal", "score"), tip("said", "nominal", "value")]
    null = layer("null").mark_bar(height=12, color=palette.null, opacity=0.45)
    whole = layer("whole").mark_rule(color=palette.pair, strokeWidth=2)
    dots = layer("dots").mark_point(filled=True, size=70, opacity=1, color=palette.pair)
    text = layer("said").mark_text(align="left", dx=4, fontSize=11, color=palette.text)
    return layered(
        null.encode(x=x("from"), x2=alt.X2("to"), y=y, tooltip=tips),
        whole.encode(x=x("from"), x2=alt.X2("to"), y=y, tooltip=tips),
        dots.encode(x=x("at"), y=y, tooltip=tips),
        text.encode(x=alt.XValue("width"), y=y, text=alt.Text("short:N")),
        padding={"right": 52},
    )


def _said() -> pl.Expr:
    def number(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.Float64).round(4).cast(pl.String)

    span = pl.concat_str(pl.lit("  ("), number("low"), pl.lit(" to "), number("high"), pl.lit(")"))
    known = pl.col("low").is_not_null() & pl.col("low").cast(pl.Float64).is_not_nan()
    return pl.concat_str(number("value"), pl.when(known).then(span).otherwise(pl.lit("")))
