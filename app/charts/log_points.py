"""Named points over two logarithmic axes, with lines at chance; a click picks the nearest one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import DASHED, Kind, across, log_format, log_ticks, pick, tip
from app.charts.template import Chart, Rows, hole, layer, layered, rows, template, text_hole

STAR = (
    "M0,-1L0.235,-0.324L0.951,-0.309L0.380,0.124L0.588,0.809L0,0.4"
    "L-0.588,0.809L-0.380,0.124L-0.951,-0.309L-0.235,-0.324Z"
)
"""A shape of points, in the square from −1 to 1."""
LETTER, LINE = 0.019, 0.058
"""Width of a letter and height of a line as shares of a plot of usual size."""


def log_domain(found: Sequence[float], *, least: float = 1e-3) -> tuple[float, float]:
    """A logarithmic axis that holds all positive values from `least` on and 1, with room at both ends."""
    known = [value for value in found if math.isfinite(value) and value >= least] + [1.0]
    low, high = min(known), max(known)
    room = max(high / low, 2.0) ** 0.07
    return low / room, high * room


def log_points(
    table: pl.DataFrame,
    *,
    x_title: str,
    y_title: str,
    looks: Mapping[str, tuple[str, str]],
    palette: Palette,
    domains: tuple[tuple[float, float], tuple[float, float]],
    selected: str = "",
    reference: str = "chance",
    height: int = 380,
) -> Chart:
    """One point per row; a click anywhere picks the nearest point's `candidate`.

    Args:
        table: columns candidate, x, y (> 0), series, hollow, label (or null; of names that would lie over
            each other the first row's is shown); further columns are told in the tooltip.
        looks: colour and shape of each series, in legend order.
        domains: ends of both axes; points outside are drawn at the end.
        selected: the candidate with a ring.
        reference: name of the lines at 1.
    """
    across, up = domains
    inside = table.with_columns(pl.col("x").clip(*across), pl.col("y").clip(*up))
    sides = _names(inside, domains, reference)
    data = {
        "line": [{"x": 1.0, "y": 1.0, "label": reference}],
        "points": rows(inside),
        "selected": rows(inside.filter(pl.col("candidate") == selected)),
        "moved": [*sides["left"], *sides["right"]],
        **sides,
    }
    holes: dict[str, Any] = {}
    for name, domain in (("x", across), ("y", up)):
        holes |= {f"{name} ends": list(domain), f"{name} ticks": log_ticks(*domain)}
        holes[f"{name} digits"] = log_format(*domain)
    forms = tuple((name, *look) for name, look in looks.items())
    return Chart(_log_points(x_title, y_title, forms, palette, _told(table)), data, holes, height)


@template
def _log_points(
    x_title: str,
    y_title: str,
    looks: tuple[tuple[str, str, str], ...],
    palette: Palette,
    told: tuple[tuple[str, Kind, str], ...],
) -> alt.LayerChart:
    """Points over two logarithmic axes.

    Args:
        looks: name, colour and shape of each series. told: columns of the tooltip, kind and format of each.
    """
    x, y = alt.X("x:Q", title=x_title, **_axis("x")), alt.Y("y:Q", title=y_title, **_axis("y"))
    names = [name for name, _, _ in looks]
    legend = alt.Legend(orient="top", title=None, symbolOpacity=1) if len(names) > 1 else None
    colours = alt.Scale(domain=names, range=[colour for _, colour, _ in looks])
    shapes = alt.Scale(domain=names, range=[form for _, _, form in looks])
    titles = {"x": x_title, "y": y_title, "series": "kind"}
    tips = [
        tip(name, kind, titles.get(name, name.replace("_", " ")), **({"format": form} if form else {}))
        for name, kind, form in told
    ]
    hollow = alt.when("datum.hollow").then(alt.value(0)).otherwise(alt.value(0.85))
    points = layer("points", "points").mark_point(size=70, opacity=1, strokeWidth=1.5, cursor="pointer")
    ring = layer("selected").mark_point(size=230, opacity=1, strokeWidth=2, color=palette.mark)
    moved = layer("moved").mark_rule(color=palette.text, opacity=0.35)
    text: dict[str, Any] = {"baseline": "middle", "fontSize": 11, "color": palette.text}
    return layered(
        layer("line").mark_rule(color=palette.null, **DASHED).encode(x=x),
        *across("line", y, palette, dx=-2),
        points.encode(
            x=x,
            y=y,
            color=alt.Color("series:N", title=None, scale=colours, legend=legend),
            fill=alt.Fill("series:N", title=None, scale=colours, legend=None),
            shape=alt.Shape("series:N", title=None, scale=shapes, legend=legend),
            fillOpacity=hollow,
            tooltip=tips,
        ).add_params(pick("candidate", nearest=True)),
        ring.encode(x=x, y=y),
        moved.encode(x=x, y=y, y2=alt.Y2("y2")),
        layer("left").mark_text(**text, align="left", dx=11).encode(x=x, y=y, text=alt.Text("label:N")),
        layer("right").mark_text(**text, align="right", dx=-11).encode(x=x, y=y, text=alt.Text("label:N")),
    )


def _told(table: pl.DataFrame) -> tuple[tuple[str, Kind, str], ...]:
    """Every column of a point's tooltip, its kind and format: numbers with three digits."""
    return tuple(
        (name, "quantitative" if dtype.is_numeric() else "nominal", ".3g" if dtype.is_float() else "")
        for name, dtype in table.schema.items()
        if name not in ("hollow", "label")
    )


def _axis(field: str) -> dict[str, Any]:
    scale = alt.Scale(type="log", domain=hole(f"{field} ends"), nice=False)
    axis = alt.Axis(format=text_hole(f"{field} digits"), values=hole(f"{field} ticks"), labelOverlap=True)
    return {"scale": scale, "axis": axis}


def _names(table: pl.DataFrame, domains: tuple[tuple[float, float], ...], reference: str) -> dict[str, Rows]:
    """Names beside their points, moved up or down on a thin line to where they cover least.

    A name is left out where it would lie over another one, or over the line's at the right end.
    """
    (left, right), (low, high) = domains

    def places(column: str, start: float, end: float) -> list[float]:
        return [math.log(value / start) / math.log(end / start) for value in table[column].to_list()]

    points = list(zip(places("x", left, right), places("y", low, high), strict=True))
    chance = math.log(1 / low) / math.log(high / low)
    taken = [(1 - LETTER * len(reference), 1.0, chance + LINE / 2)]
    sides: dict[str, Rows] = {"left": [], "right": []}
    for (at_x, at_y), row in zip(points, table.iter_rows(named=True), strict=True):
        if row["label"] is None:
            continue
        best = _quietest((at_x, at_y), LETTER * len(row["label"]), points, chance, taken)
        if best is None:
            continue
        align, start, end, level = best
        taken.append((start, end, level))
        moved = low * (high / low) ** level
        sides[align].append({"x": row["x"], "y": moved, "y2": row["y"], "label": row["label"]})
    return sides


def _quietest(
    at: tuple[float, float],
    long: float,
    points: Sequence[tuple[float, float]],
    chance: float,
    taken: Sequence[tuple[float, float, float]],
) -> tuple[str, float, float, float] | None:
    """Side, begin, end and height of a name's free place that covers fewest points, near ones preferred.

    Args:
        at: its point. long: its width. chance: height of a line that it had better not cover either. taken:
            begin, end and height of the names that have a place.
    """
    found: list[tuple[float, tuple[str, float, float, float]]] = []
    for step in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        level = at[1] + step * LINE
        for align, start in (("left", at[0] + 0.03), ("right", at[0] - 0.03 - long)):
            end = start + long
            inside = start >= 0 and end <= 1 and LINE / 2 <= level <= 1 - LINE / 2
            free = all(end < begin or other < start or abs(level - y) >= LINE for begin, other, y in taken)
            if inside and free:
                covered = sum(start < x < end and abs(level - y) < 0.6 * LINE for x, y in points)
                covered += 2 * (abs(level - chance) < 0.5 * LINE)
                found.append((covered + 0.4 * abs(step), (align, start, end, level)))
    return min(found, key=lambda place: place[0])[1] if found else None
