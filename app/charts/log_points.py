"""Named points over two logarithmic axes, with lines at chance; a click picks the nearest one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec, channel, chart, layer, log_format, log_ticks, pick, values

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
) -> Spec:
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
    x, y = _axis("x", x_title, across), _axis("y", y_title, up)
    parts = _reference(reference, x, y, palette)
    domain, colours = list(looks), [colour for colour, _ in looks.values()]
    scale = {"domain": domain, "range": colours}
    legend = {"orient": "top", "title": None, "symbolOpacity": 1} if len(domain) > 1 else None
    tips = _tips(table, {"x": x_title, "y": y_title})
    shape = {"domain": domain, "range": [form for _, form in looks.values()]}
    point = {
        "x": x,
        "y": y,
        "color": channel("series", "nominal", scale=scale, legend=legend),
        "fill": channel("series", "nominal", scale=scale, legend=None),
        "shape": channel("series", "nominal", scale=shape, legend=legend),
        "fillOpacity": {"condition": {"test": "datum.hollow", "value": 0}, "value": 0.85},
        "tooltip": tips,
    }
    mark = {"type": "point", "size": 70, "opacity": 1, "strokeWidth": 1.5, "cursor": "pointer"}
    nearest = pick(["candidate"])
    nearest[0]["select"]["nearest"] = True
    parts.append(layer(values(inside), mark, point, params=nearest))
    ring = {"type": "point", "size": 230, "opacity": 1, "strokeWidth": 2, "color": palette.mark}
    parts.append(layer(values(inside.filter(pl.col("candidate") == selected)), ring, {"x": x, "y": y}))
    parts += _names(inside, x, y, palette, domains)
    return chart(parts, height)


def _tips(table: pl.DataFrame, titles: Mapping[str, str]) -> list[Spec]:
    """Every column of a point, numbers with three digits."""
    tips = []
    for name, dtype in table.schema.items():
        if name in ("hollow", "label"):
            continue
        title = titles.get(name, name.replace("_", " ") if name != "series" else "kind")
        number = {"format": ".3g"} if dtype.is_float() else {}
        tips.append(channel(name, "quantitative" if dtype.is_numeric() else "nominal", title, **number))
    return tips


def _axis(field: str, title: str, domain: tuple[float, float]) -> Spec:
    scale = {"type": "log", "domain": list(domain), "nice": False}
    axis = {"format": log_format(*domain), "values": log_ticks(*domain), "labelOverlap": True}
    return channel(field, "quantitative", title, scale=scale, axis=axis)


def _reference(name: str, x: Spec, y: Spec, palette: Palette) -> list[Spec]:
    data = values([{"x": 1.0, "y": 1.0, "label": name}])
    rule = {"type": "rule", "color": palette.null, "strokeDash": [5, 4], "strokeWidth": 1.5}
    text = {"type": "text", "align": "right", "baseline": "bottom", "dx": -2, "dy": -3, "fontSize": 11}
    said = {"x": {"value": "width"}, "y": y, "text": {"field": "label", "type": "nominal"}}
    return [
        layer(data, rule, {"x": x}),
        layer(data, rule, {"y": y}),
        layer(data, {**text, "color": palette.null}, said),
    ]


def _names(
    table: pl.DataFrame, x: Spec, y: Spec, palette: Palette, domains: tuple[tuple[float, float], ...]
) -> list[Spec]:
    """Names beside their points, moved up or down on a thin line to where they cover least.

    A name is left out where it would lie over another one.
    """
    (left, right), (low, high) = domains

    def places(column: str, start: float, end: float) -> list[float]:
        return [math.log(value / start) / math.log(end / start) for value in table[column].to_list()]

    points = list(zip(places("x", left, right), places("y", low, high), strict=True))
    chance = math.log(1 / low) / math.log(high / low)
    taken: list[tuple[float, float, float]] = []
    sides: dict[str, list[dict[str, object]]] = {"left": [], "right": []}
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
    text = {"type": "text", "baseline": "middle", "fontSize": 11, "color": palette.text}
    line = {"type": "rule", "color": palette.text, "opacity": 0.35}
    said = {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}}
    lines = layer(values([*sides["left"], *sides["right"]]), line, {"x": x, "y": y, "y2": {"field": "y2"}})
    return [lines] + [
        layer(values(rows), {**text, "align": align, "dx": 11 if align == "left" else -11}, said)
        for align, rows in sides.items()
    ]


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
