"""A grid of cells over two ordered axes, coloured by a value: layer × head, k × α, head × head."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import HIGH, WIDE, Kind, angle_of, pick, tip
from app.charts.template import Chart, hole, layer, layered, rows, template, text_hole

REACH = 10.0
"""The colours of nine cells in ten take at least a tenth of the scale."""
UPRIGHT = 96
"""Pixels that names of columns take where they may stand upright."""
LETTER, LINE = 6.5, 13
"""Pixels that a letter and a line of a cell's text take."""


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
    compressed: float | None = None,
    told: Mapping[str, str] | None = None,
) -> Chart:
    """One cell per row of a table; a cell without a value is drawn as an empty frame.

    Args:
        table: columns `x`, `y`, `value`; numbers order an axis by size (y upwards), texts by appearance.
        selected: {column: value} of x, of y or of both: that column, row or cell is outlined, and cells
            can be clicked; the parameter `pick` then selects fields `x` and `y`.
        diverging: colours on both sides of 0, symmetric; else from the smallest value to the largest. Either
            way a few extreme cells beyond the others have the colour of the end, and the legend says so.
        labels: write the value into every cell, where cells are large enough to be read.
        format: of values, in d3's notation.
        compressed: colours follow the logarithm of values beyond this size and the values below it, from the
            smallest to the largest, however extreme.
        told: more columns of text that a cell tells, by the names they get there.
    """
    known = pl.col(value).is_not_null() & pl.col(value).cast(pl.Float64).is_not_nan()
    full, blank = table.filter(known), table.filter(~known.fill_null(False))
    found = full[value].cast(pl.Float64)
    domain, middle = _colours(found, len(palette.scheme), diverging, compressed)
    columns, rising = _order(table[x]), _order(table[y], upwards=True)
    holes: dict[str, Any] = {"columns": columns, "rows": rising, "colours": domain}
    holes["angle"] = angle_of(columns if not table[x].dtype.is_numeric() else ())
    holes |= legend_of(found, domain, format, middle)
    data = {"cells": rows(full)}
    if blank.height:
        data["blank"] = rows(blank.select(x, y, *(told or {})).with_columns(said=pl.lit("no value")))
    written = labels and full.height > 0
    if written:
        data["written"] = data["cells"]
        dark = f"abs(datum['{value}']) > {0.6 * domain[-1]}" if diverging else f"datum['{value}'] > {middle}"
        holes |= {"dark": dark, "opacity": _fitting(found, format, len(columns), len(rising))}
    if selected:
        data["selected"] = [dict(selected)]
    axes = _Axis(x, table[x].dtype.is_numeric(), x_title), _Axis(y, table[y].dtype.is_numeric(), y_title)
    shown = diverging, blank.height > 0, written
    framed_at = None if selected is None else tuple(name for name in (x, y) if name in selected)
    more = tuple((told or {}).items())
    look = _matrix(*axes, (value, value_title, format), palette, shown, compressed, framed_at, more)
    height = min(max(130 + 28 * table[y].n_unique(), 200), 460)
    return Chart(look, data, holes, height + (UPRIGHT if holes["angle"] else 0))


class _Axis(NamedTuple):
    """What an axis shows: a column, whether of numbers, and its title."""

    name: str
    numeric: bool
    title: str

    @property
    def kind(self) -> Kind:
        return "ordinal" if self.numeric else "nominal"


@template
def _matrix(
    across: _Axis,
    up: _Axis,
    value: tuple[str, str, str],
    palette: Palette,
    shown: tuple[bool, bool, bool],
    compressed: float | None,
    selected: tuple[str, ...] | None,
    told: tuple[tuple[str, str], ...],
) -> alt.LayerChart:
    """Cells over two axes.

    Args:
        value: its column, title and format.
        shown: whether colours have two sides, whether there are cells without a value, whether values are
            written.
        selected: the columns that say what is outlined; None: cells can't be clicked.
        told: more columns of text, with their names.
    """
    (name, title, format), (diverging, blank, written) = value, shown
    plain: dict[str, Any] = {"labelOverlap": True, "labelSeparation": 4, "ticks": False, "domain": False}
    shapes = {
        "columns": alt.Axis(**plain, labelAngle=hole("angle")),
        "rows": alt.Axis(**plain, labelAngle=0),
    }

    def band(channel: type[alt.X] | type[alt.Y], axis: _Axis, domain: str) -> alt.X | alt.Y:
        scale = alt.Scale(domain=hole(domain), paddingInner=0.04)
        named: dict[str, Any] = {"field": axis.name, "type": axis.kind, "title": axis.title}
        return channel(**named, axis=shapes[domain], scale=scale, sort=None)

    place: dict[str, Any] = {"x": band(alt.X, across, "columns"), "y": band(alt.Y, up, "rows")}
    scheme = [palette.a, palette.scheme[0], palette.b] if diverging else list(palette.scheme)
    kind: dict[str, Any] = {} if compressed is None else {"type": "symlog", "constant": compressed}
    scale = alt.Scale(domain=hole("colours"), range=scheme, interpolate="rgb", clamp=True, **kind)
    where = [tip(axis.name, axis.kind, axis.title) for axis in (across, up)]
    where += [tip(column, "nominal", said) for column, said in told]
    tips = [*where, tip(name, "quantitative", title, format=format)]
    cells = layer("cells", "cells").encode(**place, color=heat(name, title, scale), tooltip=tips)
    click = pick(across.name, up.name)
    parts = [cells.mark_rect() if selected is None else cells.mark_rect(cursor="pointer").add_params(click)]
    if blank:
        frame = layer("blank").mark_rect(fillOpacity=0, stroke=palette.null, strokeOpacity=0.35)
        parts.append(frame.encode(**place, tooltip=[*where, tip("said", "nominal", title)]))
    if written:
        near, far = alt.value(palette.text), alt.value(palette.scheme[0])
        text = layer("written").mark_text(fontSize=11, opacity=hole("opacity"))
        said = alt.Text(field=name, type="quantitative", title=None, format=format)
        shade = alt.when(text_hole("dark")).then(far).otherwise(near)
        parts.append(text.encode(**place, text=said, color=shade))
    if selected:
        edges: dict[str, Any] = {}
        for side, axis, whole in (("x", across, WIDE), ("y", up, HIGH)):
            edges |= {side: place[side]} if axis.name in selected else whole
        parts += framed("selected", edges, palette)
    return layered(*parts)


def _order(column: pl.Series, upwards: bool = False) -> list[Any]:
    """Domain of a band axis, which every layer of the chart shares: numbers by size, texts as they come."""
    found = column.unique(maintain_order=True)
    return (found.sort(descending=upwards) if found.dtype.is_numeric() else found).to_list()


def _written(value: float, format: str) -> str:
    """About what d3 writes: its `~` and `r` (as many significant digits, no exponent) are not Python's."""
    return f"{value:{format.replace('~', '').replace('r', 'g')}}"


def _fitting(found: pl.Series, format: str, columns: int, rows: int) -> dict[str, str]:
    """Opacity of the values written in cells: none where the longest doesn't fit into a cell."""
    longest = max(len(_written(value, format)) for value in found.to_list())
    fits = f"width / {columns} >= {LETTER * longest + 4} && height / {rows} >= {LINE}"
    return {"expr": f"{fits} ? 1 : 0"}


def robust_ends(found: pl.Series) -> tuple[float, float]:
    """Ends of the colours: the smallest and the largest value, but no further from the median than `REACH`
    times the 5th and the 95th percentile are, so that a few extreme cells leave colours for all others."""
    known = found.drop_nulls().drop_nans()
    if known.is_empty():
        return 0.0, 1.0
    first, middle, last = (float(known.quantile(q, "linear") or 0.0) for q in (0.05, 0.5, 0.95))
    least, most = float(known.min()), float(known.max())  # type: ignore[arg-type]
    if first < middle:
        least = max(least, middle - REACH * (middle - first))
    if middle < last:
        most = min(most, middle + REACH * (last - middle))
    return least, most


def legend_of(
    found: pl.Series, domain: Sequence[float], format: str, middle: float | None = None
) -> dict[str, Any]:
    """Holes of `heat`: the ends are written, and the middle unless it reads like an end; an end that cells
    lie beyond has ≤ or ≥ before it.

    Args:
        middle: the value whose colour is half way; None: the mean of the ends.
    """
    low, high = domain[0], domain[-1]
    known = found.drop_nulls().drop_nans()
    said = f"format(datum.value, '{format}')"
    if (known < low).any():
        said = f"(datum.value <= {low} ? '≤ ' : '') + {said}"
    if (known > high).any():
        said = f"(datum.value >= {high} ? '≥ ' : '') + {said}"
    half = (low + high) / 2 if middle is None else middle
    low_text, half_text, high_text = (_written(value, format) for value in (low, half, high))
    between = [] if half_text in (low_text, high_text) else [half]
    return {"written": [low, *between, high], "said": said}


def heat(field: str, title: str, scale: alt.Scale) -> alt.Color:
    """The colour of cells, with a gradient above them."""
    shape: dict[str, Any] = {"orient": "top", "gradientLength": 180, "gradientThickness": 10}
    legend = alt.Legend(**shape, values=hole("written"), labelExpr=text_hole("said"))
    return alt.Color(field=field, type="quantitative", title=title, scale=scale, legend=legend)


def framed(data: str, place: Mapping[str, Any], palette: Palette) -> list[alt.Chart]:
    """A frame around what is selected, on a wider one that parts it from cells of its own colour.

    Clicks go through to the cells below.
    """
    frame = functools.partial(layer(data).mark_rect, fill=None)
    return [
        frame(stroke=palette.scheme[0], strokeWidth=5).encode(**place),
        frame(stroke=palette.mark, strokeWidth=2).encode(**place),
    ]


def _colours(
    found: pl.Series, colours: int, diverging: bool, compressed: float | None
) -> tuple[list[float], float]:
    """Domain of the scale, a number for each of the colours or three where they have two sides, and the value
    half way."""
    low, high = robust_ends(found)
    if compressed is not None and len(found):
        low, high = float(found.min()), float(found.max())  # type: ignore[arg-type]
    if diverging:
        most = max(abs(low), abs(high)) or 1.0
        return [-most, 0.0, most], 0.0
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    if compressed is None:
        return [low + (high - low) * i / (colours - 1) for i in range(colours)], (low + high) / 2
    least, most = (math.copysign(math.log1p(abs(end) / compressed), end) for end in (low, high))
    between = [least + (most - least) * i / (colours - 1) for i in range(1, colours - 1)]
    *inner, middle = (
        math.copysign(compressed * math.expm1(abs(v)), v) for v in (*between, (least + most) / 2)
    )
    return [low, *inner, high], middle
