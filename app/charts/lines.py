"""Lines over a numeric axis, linear or logarithmic, and values with the range that chance gives them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import PLAIN, UNDER_NAMES, Spec, channel, chart, color, layer, log_format, values


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
) -> Spec:
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
    x = _x(table, x_title, log_x, marks, x_format)
    room = 0.06 + 0.075 * len(marks or {})  # names of the marks stand above the lines
    y = _y(table, null, y_title, log_y, floor, room)
    if limits is not None:
        y["scale"]["domain"] = list(limits)
    hue = color(list(colors), list(colors.values()))
    low, high = {**y, "field": "low"}, {"field": "high"}
    parts: list[Spec] = []
    if null is not None and null.height:
        area = {"type": "area", "opacity": 0.3, "color": palette.null, "clip": True}
        parts.append(layer(values(null), area, {"x": x, "y": low, "y2": high}))
    if {"low", "high"} <= set(table.columns):
        area = {"type": "area", "opacity": 0.22, "clip": True}
        whole = values(table.drop_nulls(["low", "high"]))
        parts.append(layer(whole, area, {"x": x, "y": low, "y2": high, "color": hue}))
    line = {"type": "line", "strokeWidth": 2, "clip": True}
    parts.append(layer(values(table), line, {"x": x, "y": y, "color": hue}))
    tips = [
        channel("series", "nominal", "series"),
        channel("x", "quantitative", x_title, format=".4g"),
        channel("value", "quantitative", y_title, format=".4g"),
    ]
    dots = {"type": "point", "filled": True, "size": 26, "opacity": 1, "clip": True}
    parts.append(layer(values(table), dots, {"x": x, "y": y, "color": hue, "tooltip": tips}))
    for number, (name, at) in enumerate((marks or {}).items()):
        parts += _mark(name, at, x, palette, number)
    return chart(parts, height)


def _x(table: pl.DataFrame, title: str, log: bool, marks: Mapping[str, float] | None, format: str) -> Spec:
    found = [*table["x"].drop_nulls().to_list(), *(marks or {}).values()] or [1.0]
    scale = {"domain": [min(found), max(found)], "nice": False, "zero": False}
    axis = {"grid": False, "labelOverlap": True, "tickCount": 8, "format": format}
    if log:
        scale["type"] = "log"
    return channel("x", "quantitative", title, scale=scale, axis=axis)


def _y(
    table: pl.DataFrame, null: pl.DataFrame | None, title: str, log: bool, floor: float | None, room: float
) -> Spec:
    found: list[float] = []
    for frame in (table, null):
        for name in ("value", "low", "high"):
            if frame is not None and name in frame.columns:
                found += frame[name].cast(pl.Float64).drop_nulls().drop_nans().to_list()
    found = [v for v in found if v > 0] if log else found
    low, high = (min(found), max(found)) if found else ((0.1, 1.0) if log else (0.0, 1.0))
    low = low if floor is None else max(low, floor)
    if log:
        top = high * max(high / low, 1.3) ** room
        scale = {"type": "log", "domain": [low / 1.1, top], "nice": False}
        return channel(
            "value", "quantitative", title, scale=scale, axis={"tickCount": 5, "format": log_format(low, top)}
        )
    size = high - low or max(abs(high), 1e-6)
    scale = {"domain": [low - 0.06 * size, high + room * size], "nice": False, "zero": False}
    return channel("value", "quantitative", title, scale=scale, axis={"tickCount": 6, "format": ".4~g"})


def _mark(name: str, at: float, x: Spec, palette: Palette, number: int) -> list[Spec]:
    """A vertical line with its name beside it; names of several lines lie below each other."""
    data = values([{"x": at, "label": name}])
    rule = {"type": "rule", "color": palette.mark, "strokeDash": [5, 4], "strokeWidth": 1.5}
    low, high = x["scale"]["domain"]
    middle = (low * high) ** 0.5 if x["scale"].get("type") == "log" else (low + high) / 2
    side = {"align": "left", "dx": 5} if at <= middle else {"align": "right", "dx": -5}
    text = {"type": "text", "baseline": "top", "fontSize": 11, "color": palette.text, **side}
    place = {"x": x, "y": {"value": 4 + 15 * number}, "text": {"field": "label", "type": "nominal"}}
    return [layer(data, rule, {"x": x}), layer(data, text, place)]


def value_dots(table: pl.DataFrame, *, x_title: str, palette: Palette, limits: tuple[float, float]) -> Spec:
    """A dot per row with its interval, over the range that chance gives it in grey.

    Args:
        table: columns name (each once), value, low, high (its interval, may be null), null_low, null_high
            (range of chance, may be null).
        limits: the horizontal axis; a value outside is drawn at the end and written out.
    """
    least, most = limits
    names = table["name"].to_list()
    x = channel("at", "quantitative", x_title, scale={"domain": [least, most], "nice": False})
    x["axis"] = {"tickCount": 6, "format": PLAIN, **UNDER_NAMES}
    axis = {"labelLimit": 190, "ticks": False, "labelOverlap": False}
    y = channel("name", "nominal", None, sort=None, scale={"domain": names}, axis=axis)

    def inside(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.Float64).fill_nan(None).clip(least, most)

    data = table.with_columns(inside("value").alias("at"), said=_said())
    tips = [channel("name", "nominal", "score"), channel("said", "nominal", "value")]
    parts: list[Spec] = []
    for ends, mark in (
        (("null_low", "null_high"), {"type": "bar", "height": 12, "color": palette.null, "opacity": 0.45}),
        (("low", "high"), {"type": "rule", "color": palette.pair, "strokeWidth": 2}),
    ):
        known = data.with_columns(inside(ends[0]).alias("from"), inside(ends[1]).alias("to"))
        known = known.drop_nulls(["from", "to"])
        place = {"x": {**x, "field": "from"}, "x2": {"field": "to"}, "y": y, "tooltip": tips}
        parts.append(layer(values(known), mark, place))
    dot = {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": palette.pair}
    shown = values(data.drop_nulls("at"))
    parts.append(layer(shown, dot, {"x": x, "y": y, "tooltip": tips}))
    text = {"type": "text", "align": "left", "dx": 4, "fontSize": 11, "color": palette.text}
    said = {"x": {"value": "width"}, "y": y, "text": {"field": "short", "type": "nominal"}}
    parts.append(layer(values(data), text, said))
    spec = chart(parts, 90 + 24 * len(names))
    return {**spec, "padding": {"right": 52}}


def _said() -> pl.Expr:
    def number(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.Float64).round(4).cast(pl.String)

    span = pl.concat_str(pl.lit("  ("), number("low"), pl.lit(" to "), number("high"), pl.lit(")"))
    known = pl.col("low").is_not_null() & pl.col("low").cast(pl.Float64).is_not_nan()
    return pl.concat_str(number("value"), pl.when(known).then(span).otherwise(pl.lit("")))
