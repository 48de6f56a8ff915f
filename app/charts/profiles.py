"""Positive values over layers on a logarithmic axis, each with the most it could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from app.charts.log_points import log_domain
from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, color, layer, log_format, log_ticks, pick, values


def ratio_profile(
    table: pl.DataFrame,
    *,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    marked: Sequence[int] = (),
    x_title: str = "Block ℓ",
    height: int = 320,
) -> Spec:
    """One line per series over layers and, dashed, the largest possible value; a line at chance, 1.

    Args:
        table: columns layer, series, value, most; values that are not positive are not drawn.
        colors: a colour for each series, in legend order.
        marked: layers with a shade behind them.
    """
    layers = table["layer"].unique().sort().to_list() or [0]
    found = [*table["value"].drop_nulls().to_list(), *table["most"].drop_nulls().to_list()]
    domain = log_domain(found, least=1e-2)
    scale = {"domain": [layers[0] - 0.5, layers[-1] + 0.5], "nice": False}
    step = max(1, (len(layers) + 11) // 12)
    ticks = {"values": layers[::step], "grid": False, "format": "d", "labelOverlap": True}
    x = channel("layer", "quantitative", x_title, scale=scale, axis=ticks)
    y = channel(
        "value",
        "quantitative",
        y_title,
        scale={"type": "log", "domain": list(domain), "nice": False},
        axis={"values": log_ticks(*domain), "format": log_format(*domain)},
    )
    shown = values([{"layer": at - 0.5, "end": at + 0.5} for at in marked])
    shade = {"type": "rect", "color": palette.mark, "opacity": 0.08}
    parts = [layer(shown, shade, {"x": x, "x2": {"field": "end"}})]
    parts += _reference(y, palette)
    hue = color(list(colors), list(colors.values()))
    known = table.filter(pl.col("value").is_finite() & (pl.col("value") > 0))
    known = known.with_columns(pl.col("value").clip(*domain))
    limit = table.filter(pl.col("most").is_finite() & (pl.col("most") > 0))
    dashed = {"type": "line", "strokeDash": [3, 3], "strokeWidth": 1.3, "opacity": 0.9}
    parts.append(layer(values(limit), dashed, {"x": x, "y": {**y, "field": "most"}, "color": hue}))
    ends = {"type": "point", "shape": "triangle-down", "filled": True, "size": 22, "opacity": 0.9}
    parts.append(layer(values(limit), ends, {"x": x, "y": {**y, "field": "most"}, "color": hue}))
    parts.append(layer(values(known), {"type": "line", "strokeWidth": 2}, {"x": x, "y": y, "color": hue}))
    dot = {"type": "point", "filled": True, "size": 40, "opacity": 1}
    parts.append(layer(values(known), dot, {"x": x, "y": y, "color": hue}))
    parts.append(_hits(table, list(colors), x, x_title))
    return chart(parts, height)


def _reference(y: Spec, palette: Palette) -> list[Spec]:
    data = values([{"value": 1.0, "label": "chance"}])
    rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4], "strokeWidth": 1.5}
    text = {"type": "text", "align": "right", "baseline": "bottom", "dy": -3, "fontSize": 11}
    said = {"x": {"value": "width"}, "y": y, "text": {"field": "label", "type": "nominal"}}
    return [layer(data, rule, {"y": y}), layer(data, {**text, "color": palette.null}, said)]


def _hits(table: pl.DataFrame, series: Sequence[str], x: Spec, x_title: str) -> Spec:
    """Invisible columns that take clicks and tell every series in one tooltip."""
    rows: dict[int, dict[str, object]] = {}
    for row in table.iter_rows(named=True):
        at = row["layer"]
        entry = rows.setdefault(at, {"layer": at, "x": at - 0.5, "x2": at + 0.5})
        key = f"s{series.index(row['series'])}"
        there = row["value"] is not None and row["value"] == row["value"]
        entry[key] = f"{row['value']:.4g} of at most {row['most']:.4g}" if there else "no value"
    tips = [channel("layer", "quantitative", x_title)]
    tips += [channel(f"s{number}", "nominal", name) for number, name in enumerate(series)]
    mark = {"type": "rect", "opacity": 0, "cursor": "pointer"}
    encoding = {"x": {**x, "field": "x"}, "x2": {"field": "x2"}, "tooltip": tips}
    return layer(values(list(rows.values())), mark, encoding, params=pick(["layer"]))
