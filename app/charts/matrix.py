"""A grid of cells over two ordered axes, coloured by a value: layer × head, k × α, head × head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, layer, pick, values


def matrix(
    table: pl.DataFrame,
    *,
    x: str,
    y: str,
    value: str,
    x_title: str,
    y_title: str,
    value_title: str,
    palette: Palette,
    selected: Mapping[str, Any] | None = None,
    diverging: bool = False,
    labels: bool = False,
    format: str = ".3g",
) -> Spec:
    """One cell per row of a table; a cell without a value is drawn as an empty frame.

    Args:
        table: columns `x`, `y`, `value`; numbers order an axis by size (y upwards), texts by appearance.
        selected: {column: value} of x, of y or of both: that column, row or cell is outlined, and cells
            can be clicked; the parameter `pick` then selects fields `x` and `y`.
        diverging: colours on both sides of 0, symmetric; else from the smallest value to the largest.
        labels: write the value into every cell.
        format: of values, in d3's notation.
    """
    across, up = _axis(table, x, x_title), _axis(table, y, y_title, upwards=True)
    known = pl.col(value).is_not_null() & pl.col(value).cast(pl.Float64).is_not_nan()
    full, blank = table.filter(known), table.filter(~known.fill_null(False))
    domain, scheme = _colours(full[value].cast(pl.Float64), palette, diverging)
    legend = {"orient": "top", "gradientLength": 180, "gradientThickness": 10, "format": format}
    scale = {"domain": domain, "range": scheme, "interpolate": "rgb"}
    hue = channel(value, "quantitative", value_title, scale=scale, legend=legend)
    place = [channel(x, across["type"], x_title), channel(y, up["type"], y_title)]
    tips = [*place, channel(value, "quantitative", value_title, format=format)]
    params = {} if selected is None else {"params": pick([x, y])}
    cursor = {} if selected is None else {"cursor": "pointer"}
    cells = {"x": across, "y": up, "color": hue, "tooltip": tips}
    parts = [layer(values(full), {"type": "rect", **cursor}, cells, **params)]
    if blank.height:
        frame = {"type": "rect", "fillOpacity": 0, "stroke": palette.null, "strokeOpacity": 0.35}
        said = values(blank.select(x, y).with_columns(said=pl.lit("no value")))
        tips = [*place, channel("said", "nominal", value_title)]
        parts.append(layer(said, frame, {"x": across, "y": up, "tooltip": tips}))
    if labels and full.height:
        parts.append(_labels(full, value, {"x": across, "y": up}, domain, palette, diverging, format))
    if selected:
        parts.append(_outline(selected, {x: across, y: up}, x, palette))
    return chart(parts, min(max(130 + 28 * table[y].n_unique(), 200), 460))


def _axis(table: pl.DataFrame, name: str, title: str, upwards: bool = False) -> Spec:
    """A band axis whose domain every layer of the chart shares."""
    found = table[name].unique(maintain_order=True)
    numeric = found.dtype.is_numeric()
    domain = found.sort(descending=upwards) if numeric else found
    axis = {"labelOverlap": True, "labelAngle": 0, "ticks": False, "domain": False}
    scale = {"domain": domain.to_list(), "paddingInner": 0.04}
    return channel(name, "ordinal" if numeric else "nominal", title, axis=axis, scale=scale, sort=None)


def _colours(found: pl.Series, palette: Palette, diverging: bool) -> tuple[list[float], list[str]]:
    """Domain and colours of the scale: one colour per domain entry."""
    if diverging:
        most = max((abs(v) for v in found.to_list()), default=1.0) or 1.0
        return [-most, 0.0, most], [palette.a, palette.scheme[0], palette.b]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)  # type: ignore[arg-type]
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    last = len(palette.scheme) - 1
    return [low + (high - low) * i / last for i in range(last + 1)], list(palette.scheme)


def _labels(
    table: pl.DataFrame,
    value: str,
    place: Spec,
    domain: list[float],
    palette: Palette,
    diverging: bool,
    format: str,
) -> Spec:
    """The values as text, dark on light cells and light on dark ones."""
    near, far = palette.text, palette.scheme[0]
    middle = (domain[0] + domain[-1]) / 2
    test = f"abs(datum['{value}']) > {0.6 * domain[-1]}" if diverging else f"datum['{value}'] > {middle}"
    text = {
        "text": channel(value, "quantitative", format=format),
        "color": {"condition": {"test": test, "value": far}, "value": near},
    }
    return layer(values(table), {"type": "text", "fontSize": 11}, {**place, **text})


def _outline(selected: Mapping[str, Any], axes: Mapping[str, Spec], x: str, palette: Palette) -> Spec:
    """A frame around the selected column, row or cell; it lets clicks through to the cells below."""
    encoding: Spec = {}
    for name, axis in axes.items():
        side = "x" if name == x else "y"
        if name in selected:
            encoding[side] = axis
        else:
            whole = {"x": ({"value": 0}, {"value": "width"}), "y": ({"value": 0}, {"value": "height"})}[side]
            encoding[side], encoding[side + "2"] = whole
    frame = {"type": "rect", "fill": None, "stroke": palette.mark, "strokeWidth": 2}
    return layer(values([dict(selected)]), frame, encoding)
