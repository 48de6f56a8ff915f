"""Per-layer curves: lines with bands, a null band, reference lines and clickable layer columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, color, layer, pick, values


@dataclass(frozen=True)
class Look:
    """How a layer curve is drawn.

    Args:
        y_title: quantity and unit on the vertical axis.
        colors: a colour for each series, in legend order.
        x_title: what a layer means here.
        references: named horizontal lines, such as chance.
        selected: the layer to highlight, or None.
        labels: tick labels of layers that are not plain numbers, e.g. {-1: "in"}.
        zoom: fit the vertical axis to the values alone; null and references may fall outside.
    """

    y_title: str
    colors: Mapping[str, str]
    x_title: str = "Block ℓ"
    references: Mapping[str, float] | None = None
    selected: int | None = None
    labels: Mapping[int, str] | None = None
    zoom: bool = False
    height: int = 340


def layer_curve(table: pl.DataFrame, look: Look, palette: Palette, null: pl.DataFrame | None = None) -> Spec:
    """One line per series over layers; a click anywhere in a layer's column selects it.

    Args:
        table: columns layer (int), series (str), value, and optionally low, high.
        null: columns layer, low, high of the band expected when there is nothing to find.

    Returns:
        A layered Vega-Lite specification whose parameter `pick` selects field `layer`.
    """
    x, domain = _x(table, look), _domain(table, null, look)
    scale = {"domain": domain, "nice": False, "zero": False}
    axis = {"format": _digits(domain), "tickCount": 6}
    y = channel("value", "quantitative", look.y_title, scale=scale, axis=axis)
    low = channel("low", "quantitative", look.y_title, scale=scale, axis=axis)
    hue = color(list(look.colors), list(look.colors.values()))
    data = values(table)
    parts: list[Spec] = []
    if look.selected is not None:
        column = values([{"x": look.selected - 0.5, "x2": look.selected + 0.5}])
        mark = {"type": "rect", "color": palette.mark, "opacity": 0.1}
        parts.append(layer(column, mark, {"x": {**x, "field": "x"}, "x2": {"field": "x2"}}))
    if null is not None and null.height:
        mark = {"type": "area", "opacity": 0.3, "color": palette.null, "clip": True}
        parts.append(layer(values(null), mark, {"x": x, "y": low, "y2": {"field": "high"}}))
    for name, at in (look.references or {}).items():
        parts += _reference(name, at, palette, scale, look)
    if {"low", "high"} <= set(table.columns):
        whole = values(table.drop_nulls(["low", "high"]))
        encoding = {"x": x, "y": low, "y2": {"field": "high"}, "color": hue}
        parts.append(layer(whole, {"type": "area", "opacity": 0.22}, encoding))
    encoding = {"x": x, "y": y, "color": hue}
    parts.append(layer(data, {"type": "line", "strokeWidth": 2}, encoding))
    parts.append(layer(data, {"type": "point", "filled": True, "size": 34, "opacity": 1}, encoding))
    parts.append(_hits(table, null, look, x))
    return chart(parts, look.height)


def _x(table: pl.DataFrame, look: Look) -> Spec:
    layers = table["layer"].to_list() or [0]
    low, high = min(layers), max(layers)
    step = max(1, (high - low + 12) // 12)
    expr = "format(datum.value, 'd')"
    for at, name in (look.labels or {}).items():
        expr = f"datum.value == {at} ? '{name}' : {expr}"
    ticks = [v for v in range(low, high + 1) if (v - low) % step == 0]
    return channel(
        "layer",
        "quantitative",
        look.x_title,
        scale={"domain": [low - 0.5, high + 0.5], "nice": False},
        axis={"values": ticks, "grid": False, "labelExpr": expr, "labelOverlap": True},
    )


def _domain(table: pl.DataFrame, null: pl.DataFrame | None, look: Look) -> list[float]:
    numbers = [] if look.zoom else list((look.references or {}).values())
    for frame in (table, None if look.zoom else null):
        for name in ("value", "low", "high"):
            if frame is not None and name in frame.columns:
                numbers += frame[name].drop_nulls().drop_nans().to_list()
    if not numbers:
        return [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    pad = 0.07 * (high - low) or 0.05 * max(abs(high), 1e-6)
    return [low - pad if low < 0 or low > pad else 0.0, high + pad]


def _digits(domain: list[float]) -> str:
    """Number format that tells neighbouring ticks apart."""
    step = max(domain[1] - domain[0], 1e-12) / 6
    if max(abs(domain[0]), abs(domain[1])) < 1e-3:
        return ".1e"
    return f".{min(max(0, math.ceil(-math.log10(step))), 9)}f" if step < 10 else ",d"


def _reference(name: str, at: float, palette: Palette, scale: Spec, look: Look) -> list[Spec]:
    data = values([{"at": at, "label": name}])
    axis = {"format": _digits(scale["domain"]), "tickCount": 6}
    y = channel("at", "quantitative", look.y_title, scale=scale, axis=axis)
    if look.zoom and not scale["domain"][0] <= at <= scale["domain"][1]:
        return []
    rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4], "strokeWidth": 1.5}
    text = {
        "type": "text",
        "align": "right",
        "baseline": "bottom",
        "dy": -3,
        "fontSize": 11,
        "color": palette.null,
    }
    place = {"x": {"value": "width"}, "y": y, "text": {"field": "label", "type": "nominal"}}
    return [layer(data, rule, {"y": y}), layer(data, text, place)]


def _hits(table: pl.DataFrame, null: pl.DataFrame | None, look: Look, x: Spec) -> Spec:
    """Invisible full-height columns that take clicks and show every series in one tooltip."""
    keys = {name: f"s{i}" for i, name in enumerate(look.colors)}
    rows: dict[int, dict[str, object]] = {}
    for row in table.iter_rows(named=True):
        at = row["layer"]
        entry = rows.setdefault(at, {"layer": at, "x": at - 0.5, "x2": at + 0.5})
        entry[keys.get(row["series"], "")] = _said(row)
    if null is not None:
        for row in null.iter_rows(named=True):
            if row["layer"] in rows:
                rows[row["layer"]]["null"] = f"{row['low']:.4f} to {row['high']:.4f}"
    tips = [channel("layer", "quantitative", look.x_title)]
    tips += [channel(key, "nominal", name) for name, key in keys.items()]
    if null is not None and null.height:
        tips.append(channel("null", "nominal", "null"))
    encoding = {"x": {**x, "field": "x"}, "x2": {"field": "x2"}, "tooltip": tips}
    mark = {"type": "rect", "opacity": 0, "cursor": "pointer"}
    return layer(values(list(rows.values())), mark, encoding, params=pick(["layer"]))


def _said(row: Mapping[str, object]) -> str:
    value, low, high = row["value"], row.get("low"), row.get("high")
    if not isinstance(value, float | int) or math.isnan(value):
        return "undefined"
    known = isinstance(low, float) and isinstance(high, float) and not math.isnan(low)
    return f"{value:.6g}" + (f"  ({low:.6g} to {high:.6g})" if known else "")
