"""Charts with many named rows, every name readable: dots in rows, and a grid of rows × layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl

from app.charts.log_points import log_domain
from app.charts.palette import Palette
from app.charts.spec import (
    PLAIN,
    UNDER_NAMES,
    Spec,
    channel,
    chart,
    color,
    layer,
    log_format,
    log_ticks,
    pick,
    values,
)

ROW = 17
"""Height of a row in pixels."""
Shade = Literal["ratio", "signed", "plain"]


def dot_rows(
    table: pl.DataFrame,
    *,
    x_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    reference: tuple[str, float] | None = ("chance", 1.0),
    joined: bool = False,
    selected: str = "",
) -> Spec:
    """A dot for every series of every row over a logarithmic axis; a click picks the row.

    Args:
        table: columns candidate (row, in order), series, value, and optionally low, high (of an interval);
            values that are not positive are not drawn.
        colors: a colour for each series, in legend order.
        joined: draw a line from the smallest to the largest value of a row.
        selected: the row that is marked.
    """
    names = table["candidate"].unique(maintain_order=True).to_list()
    known = table.filter(pl.col("value").is_finite() & (pl.col("value") > 0))
    domain = log_domain([*known["value"].to_list(), *([] if reference is None else [reference[1]])])
    scale = {"type": "log", "domain": list(domain), "nice": False}
    ticks = {"values": log_ticks(*domain), "format": log_format(*domain), "labelOverlap": True}
    axis = {**ticks, **UNDER_NAMES}
    x = channel("value", "quantitative", x_title, scale=scale, axis=axis)
    y = _rows(names)
    said = known.with_columns(pl.col("value").clip(*domain).alias("at"))
    parts = [_band(selected, y, palette)] if selected in names else []
    if reference is not None:
        rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4], "strokeWidth": 1.5}
        tip = channel("label", "nominal", "line")
        line = values([{"value": reference[1], "label": reference[0]}])
        parts.append(layer(line, rule, {"x": x, "tooltip": [tip]}))
    if joined:
        ends = said.group_by("candidate", maintain_order=True).agg(
            low=pl.col("at").min(), high=pl.col("at").max()
        )
        place = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}
        parts.append(layer(values(ends), {"type": "rule", "color": palette.null, "opacity": 0.6}, place))
    hue = color(list(colors), list(colors.values()), "circle")
    if {"low", "high"} <= set(table.columns):
        whole = said.drop_nulls(["low", "high"]).with_columns(pl.col("low", "high").clip(*domain))
        ends_of = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "color": hue}
        parts.append(layer(values(whole), {"type": "rule", "strokeWidth": 2}, ends_of))
    dot = {"type": "point", "filled": True, "size": 40, "opacity": 1}
    parts.append(layer(values(said), dot, {"x": {**x, "field": "at"}, "y": y, "color": hue}))
    parts.append(_hits(table, list(colors), y))
    return chart(parts, 90 + ROW * len(names))


def _rows(names: Sequence[str]) -> Spec:
    axis = {
        "labelLimit": 190,
        "labelFontSize": 10,
        "labelOverlap": False,
        "ticks": False,
        "domain": False,
        "grid": False,
    }
    return channel("candidate", "nominal", None, sort=None, scale={"domain": list(names)}, axis=axis)


def _band(name: str, y: Spec, palette: Palette) -> Spec:
    """The selected row, marked across the plot."""
    mark = {"type": "rect", "color": palette.mark, "opacity": 0.12}
    wide = {"x": {"value": 0}, "x2": {"value": "width"}}
    return layer(values([{"candidate": name}]), mark, {"y": y, **wide})


def _hits(table: pl.DataFrame, series: Sequence[str], y: Spec) -> Spec:
    """Invisible rows that take clicks and tell every series in one tooltip."""
    rows: dict[str, dict[str, object]] = {}
    for row in table.iter_rows(named=True):
        entry = rows.setdefault(row["candidate"], {"candidate": row["candidate"]})
        value = row["value"]
        there = value is not None and np.isfinite(value)
        entry[f"s{series.index(row['series'])}"] = f"{value:.4g}" if there else "no value"
    tips = [channel("candidate", "nominal", "candidate")]
    tips += [channel(f"s{number}", "nominal", name) for number, name in enumerate(series)]
    mark = {"type": "rect", "opacity": 0, "cursor": "pointer"}
    wide = {"x": {"value": 0}, "x2": {"value": "width"}}
    encoding = {"y": y, **wide, "tooltip": tips}
    return layer(values(list(rows.values())), mark, encoding, params=pick(["candidate"]))


def tall_grid(
    table: pl.DataFrame,
    *,
    value_title: str,
    palette: Palette,
    shade: Shade,
    selected: str = "",
    ends: Sequence[str] = (),
    aside: Sequence[str] = (),
    x_title: str = "Block ℓ",
) -> Spec:
    """A grid of rows × layers; a click picks row and layer, a cell without a value is an empty frame.

    Args:
        table: columns candidate (row, in order), layer, value.
        shade: "ratio": logarithmic, two-sided around 1; "signed": two-sided around 0, compressed; "plain".
        selected: the row that is outlined.
        ends: last rows of groups, under which a line is drawn.
        aside: rows that don't set the colours' ends; beyond them they have the end's colour.
    """
    names = table["candidate"].unique(maintain_order=True).to_list()
    y = _rows(names)
    layers = table["layer"].unique().sort().to_list()
    axis = {"labelOverlap": True, "labelAngle": 0, "ticks": False, "domain": False, **UNDER_NAMES}
    x = channel("layer", "ordinal", x_title, axis=axis, scale={"domain": layers})
    found = table["value"].cast(pl.Float64).fill_nan(None)
    known = ~table["candidate"].is_in(list(aside)).to_numpy()
    shades, domain, told = _shades(found.to_numpy().astype(float), known, shade)
    data = table.with_columns(pl.Series("shade", shades).fill_nan(None), value=found)
    full, blank = data.drop_nulls("value"), data.filter(pl.col("value").is_null())
    two = shade != "plain"
    middle = (palette.a, palette.scheme[0], palette.b)
    scale = {"domain": domain, "range": list(middle if two else palette.scheme), "interpolate": "rgb"}
    long = {"expr": "max(60, min(180, width - 24))"}
    legend = {"orient": "top", "gradientLength": long, "gradientThickness": 10, "labelExpr": told}
    legend |= {"values": domain} if two else {}
    hue = channel("shade", "quantitative", value_title, scale={**scale, "clamp": True}, legend=legend)
    tips = [channel("candidate", "nominal"), channel("layer", "ordinal", x_title)]
    tip = channel("value", "quantitative", value_title, format=".4g")
    cell = {"x": x, "y": y, "color": hue, "tooltip": [*tips, tip]}
    click = pick(["candidate", "layer"])
    parts = [layer(values(full), {"type": "rect", "cursor": "pointer"}, cell, params=click)]
    if blank.height:
        frame = {"type": "rect", "fillOpacity": 0, "stroke": palette.null, "strokeOpacity": 0.25}
        nothing = values(blank.select("candidate", "layer").with_columns(said=pl.lit("no value")))
        tips = [*tips, channel("said", "nominal", value_title)]
        parts.append(layer(nothing, frame, {"x": x, "y": y, "tooltip": tips}))
    for name in ends:
        rule = {"type": "rule", "color": palette.mark, "strokeWidth": 1.5}
        place = {"y": {**y, "bandPosition": 1}, "x": {"value": 0}, "x2": {"value": "width"}}
        parts.append(layer(values([{"candidate": name}]), rule, place))
    if selected in names:
        outline = {"type": "rect", "fill": None, "stroke": palette.mark, "strokeWidth": 2}
        wide = {"x": {"value": 0}, "x2": {"value": "width"}}
        parts.append(layer(values([{"candidate": selected}]), outline, {"y": y, **wide}))
    return chart(parts, 110 + ROW * len(names))


def _shades(found: np.ndarray, counts: np.ndarray, shade: Shade) -> tuple[np.ndarray, list[float], str]:
    """What is coloured, the ends (and middle) of its scale, and how the legend writes it.

    Args:
        counts: which values set the ends.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if shade == "ratio":
            shades, back = np.log2(found), "format(pow(2, datum.value), '.2~g')"
        elif shade == "signed":
            shades = np.sign(found) * np.log1p(np.abs(found))
            back = "format((datum.value < 0 ? -1 : 1) * (exp(abs(datum.value)) - 1), '.2~g')"
        else:
            known = found[np.isfinite(found) & counts]
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
            low, high = (min(low, 0.0), high or 1.0) if low == high else (low, high)
            steps = [low + (high - low) * step / 5 for step in range(6)]
            return found, steps, f"format(datum.value, '{PLAIN}')"
    # Both sides reach as far as the larger one above the middle: what lies far below is one colour.
    known = shades[np.isfinite(shades) & counts]
    most = max(float(known.max(initial=0.0)), 1.0)
    return np.where(np.isneginf(shades), -most, shades), [-most, 0.0, most], back
