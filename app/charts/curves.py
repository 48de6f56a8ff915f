"""Per-layer curves: lines with bands, a null band, reference lines and clickable layer columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Series, across, hue, pick, tip
from app.charts.template import Chart, Rows, hole, layer, layered, look_of, rows, template, text_hole


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


def layer_curve(table: pl.DataFrame, look: Look, palette: Palette, null: pl.DataFrame | None = None) -> Chart:
    """One line per series over layers; a click anywhere in a layer's column selects it.

    Args:
        table: columns layer (int), series (str), value, and optionally low, high.
        null: columns layer, low, high of the band expected when there is nothing to find.

    Returns:
        A layered chart whose parameter `pick` selects field `layer`.
    """
    domain = _domain(table, null, look)
    lines = {
        name: at
        for name, at in (look.references or {}).items()
        if not look.zoom or domain[0] <= at <= domain[1]
    }
    data = {"curve": rows(table), "hits": _hits(table, null, look)}
    data |= {f"line {i}": [{"at": at, "label": name}] for i, (name, at) in enumerate(lines.items())}
    if look.selected is not None:
        data["selected"] = [{"x": look.selected - 0.5, "x2": look.selected + 0.5}]
    shaded = null is not None and null.height > 0
    if null is not None and shaded:
        data["null"] = rows(null)
    banded = {"low", "high"} <= set(table.columns)
    if banded:
        data["band"] = rows(table.drop_nulls(["low", "high"]))
    labels = tuple((look.labels or {}).items())
    shown = (look.selected is not None, shaded, len(lines), banded)
    holes = {"layers": _layers(table), "ticks": _ticks(table), "ends": domain, "digits": _digits(domain)}
    holes |= {"y title": look.y_title}
    series = look_of(look.colors)
    return Chart(_curve(look.x_title, series, palette, labels, shown), data, holes, look.height)


@template
def _curve(
    x_title: str,
    series: Series,
    palette: Palette,
    labels: tuple[tuple[int, str], ...],
    shown: tuple[bool, bool, int, bool],
) -> alt.LayerChart:
    """Lines over layers.

    Args:
        labels: names of layers that are not plain numbers.
        shown: whether a layer is marked and a null shaded, how many lines of reference, whether intervals.
    """
    marked, shaded, lines, banded = shown
    expr = "format(datum.value, 'd')"
    for at, name in labels:
        expr = f"datum.value == {at} ? '{name}' : {expr}"

    def x(field: str = "layer") -> alt.X:
        scale = alt.Scale(domain=hole("layers"), nice=False)
        axis = alt.Axis(values=hole("ticks"), grid=False, labelExpr=expr, labelOverlap=True)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=axis)

    def y(field: str) -> alt.Y:
        scale = alt.Scale(domain=hole("ends"), nice=False, zero=False)
        axis = alt.Axis(format=text_hole("digits"), tickCount=6)
        return alt.Y(f"{field}:Q", title=text_hole("y title"), scale=scale, axis=axis)

    parts: list[alt.Chart] = []
    if marked:
        column = layer("selected").mark_rect(color=palette.mark, opacity=0.1)
        parts.append(column.encode(x=x("x"), x2=alt.X2("x2")))
    if shaded:
        area = layer("null").mark_area(opacity=0.3, color=palette.null, clip=True)
        parts.append(area.encode(x=x(), y=y("low"), y2=alt.Y2("high")))
    for number in range(lines):
        parts += across(f"line {number}", y("at"), palette)
    color = hue(series)
    if banded:
        parts.append(
            layer("band").mark_area(opacity=0.22).encode(x=x(), y=y("low"), y2=alt.Y2("high"), color=color)
        )
    place = {"x": x(), "y": y("value"), "color": color}
    parts.append(layer("curve").mark_line(strokeWidth=2).encode(**place))
    parts.append(layer("curve").mark_point(filled=True, size=34, opacity=1).encode(**place))
    tips = [tip("layer", "quantitative", x_title)]
    tips += [tip(f"s{number}", "nominal", name) for number, (name, _) in enumerate(series)]
    tips += [tip("null", "nominal", "null")] if shaded else []
    hits = layer("hits", "hits").mark_rect(opacity=0, cursor="pointer")
    parts.append(hits.encode(x=x("x"), x2=alt.X2("x2"), tooltip=tips).add_params(pick("layer")))
    return layered(*parts)


def _layers(table: pl.DataFrame) -> list[float]:
    layers = table["layer"].to_list() or [0]
    return [min(layers) - 0.5, max(layers) + 0.5]


def _ticks(table: pl.DataFrame) -> list[int]:
    layers = table["layer"].to_list() or [0]
    low, high = min(layers), max(layers)
    step = max(1, (high - low + 12) // 12)
    return [v for v in range(low, high + 1) if (v - low) % step == 0]


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


def _hits(table: pl.DataFrame, null: pl.DataFrame | None, look: Look) -> Rows:
    """Full-height columns that take clicks and show every series in one tooltip."""
    keys = {name: f"s{i}" for i, name in enumerate(look.colors)}
    found: dict[int, dict[str, object]] = {}
    for row in table.iter_rows(named=True):
        at = row["layer"]
        entry = found.setdefault(at, {"layer": at, "x": at - 0.5, "x2": at + 0.5})
        entry[keys.get(row["series"], "")] = _said(row)
    if null is not None:
        for row in null.iter_rows(named=True):
            if row["layer"] in found:
                found[row["layer"]]["null"] = f"{row['low']:.4f} to {row['high']:.4f}"
    return list(found.values())


def _said(row: Mapping[str, object]) -> str:
    value, low, high = row["value"], row.get("low"), row.get("high")
    if not isinstance(value, float | int) or math.isnan(value):
        return "undefined"
    known = isinstance(low, float) and isinstance(high, float) and not math.isnan(low)
    return f"{value:.6g}" + (f"  ({low:.6g} to {high:.6g})" if known else "")
