"""Values with their intervals, one row per part and one dot per series in it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import PLAIN, UNDER_NAMES, Spec, channel, chart, color, layer, values


def interval_dots(
    table: pl.DataFrame,
    *,
    x_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    reference: tuple[str, float] | None = None,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
) -> Spec:
    """A dot with its interval for every series of every row.

    Args:
        table: columns name (row, in order), series, value, low, high (may be null), n.
        colors: a colour for each series, in legend order; their dots stand below each other in a row.
        reference: a named vertical line, such as no difference.
        percent: values are shares, written in per cent.
        limits: what the axis must hold at least.
    """
    names = list(dict.fromkeys(table["name"].to_list()))
    digits = ".0%" if percent else PLAIN
    domain = _domain(table, reference, limits)
    x = channel("value", "quantitative", x_title, scale={"domain": domain, "nice": False})
    x["axis"] = {"tickCount": 6, "format": digits, **UNDER_NAMES}
    axis = {"labelLimit": 170, "ticks": False, "grid": False}
    y = channel("name", "nominal", None, sort=None, scale={"domain": names}, axis=axis)
    offset = channel("series", "nominal", scale={"domain": list(colors)}, sort=None)
    place = {"y": y, "yOffset": offset, "color": color(list(colors), list(colors.values()), "circle")}
    precise = ".1%" if percent else ".4g"
    tips = [channel("name", "nominal", "prompts"), channel("series", "nominal", "who")]
    tips += [channel(end, "quantitative", end, format=precise) for end in ("value", "low", "high")]
    tips.append(channel("n", "quantitative", "prompts with a value"))
    parts: list[Spec] = []
    if reference is not None:
        rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4], "strokeWidth": 1.5}
        line = values([{"value": reference[1], "label": reference[0]}])
        parts.append(layer(line, rule, {"x": x, "tooltip": [channel("label", "nominal", "line")]}))
    whole = values(table.drop_nulls(["low", "high"]))
    ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    bar = {"type": "rule", "strokeWidth": 2.5, "opacity": 0.75}
    parts.append(layer(whole, bar, {**place, **ends, "tooltip": tips}))
    dot = {"type": "point", "filled": True, "size": 55, "opacity": 1}
    parts.append(layer(values(table), dot, {**place, "x": x, "tooltip": tips}))
    return chart(parts, 70 + len(names) * (12 + 12 * len(colors)))


def _domain(
    table: pl.DataFrame, reference: tuple[str, float] | None, limits: tuple[float, float] | None
) -> list[float]:
    found = [*(limits or ()), *([] if reference is None else [reference[1]])]
    for name in ("value", "low", "high"):
        found += table[name].cast(pl.Float64).drop_nulls().drop_nans().to_list()
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.5
    return [low - pad, high + pad]
