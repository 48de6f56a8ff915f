"""Curves that stay while the selection moves on: drawn broken over a chart with the same axes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from app.charts.template import Chart, Rows, Spec

STROKES = {"Dashed": [7, 4], "Dotted": [2, 3]}
"""How each pinned set of curves is drawn; there are no more of them than strokes."""
MARGIN = 0.03
"""Room beyond a pinned value at an end of the vertical axis, as a share of the axis."""


@dataclass(frozen=True)
class Pin:
    """The curves of a chart as they were drawn at one selection.

    Args:
        words: the finding that stood above them.
        axes: titles and scales of x and y; curves of other axes are not drawn.
        data: the rows of all curves.
    """

    words: str
    axes: tuple[str | None, ...]
    data: Rows


def pin(spec: Spec, words: str) -> Pin | None:
    """The curves of a chart; None where it draws none over a number."""
    at = _line(spec)
    return None if at is None else Pin(words, _axes(spec["layer"][at]), spec["layer"][at]["data"]["values"])


def by_stroke(pins: Sequence[Pin]) -> dict[str, Pin]:
    """What each stroke draws."""
    return dict(zip(STROKES, pins, strict=False))


def fits(one: Pin, spec: Spec) -> bool:
    """Whether a chart has the axes of pinned curves."""
    at = _line(spec)
    return at is not None and bool(one.data) and one.axes == _axes(spec["layer"][at])


@dataclass(frozen=True)
class Pinned(Chart):
    """A chart with pinned curves over its own, in one neutral colour, and axes that reach them."""

    pins: Sequence[Pin] = ()
    colour: str = ""

    @classmethod
    def over(cls, chart: Chart, pins: Sequence[Pin], colour: str) -> Pinned:
        """The chart with those pins."""
        own = {field.name: getattr(chart, field.name) for field in fields(Chart)}
        return cls(**own, pins=pins, colour=colour)

    def spec(self) -> Spec:
        """The specification of the chart and of the pinned curves that have its axes."""
        whole = super().spec()
        at = _line(whole)
        if at is None:
            return whole
        line = whole["layer"][at]
        drawn = {stroke: one for stroke, one in by_stroke(self.pins).items() if fits(one, whole)}
        whole["layer"][at:at] = [
            _broken(line, one, STROKES[stroke], self.colour) for stroke, one in drawn.items()
        ]
        for channel in ("x", "y"):
            field = line["encoding"][channel]["field"]
            found = [row[field] for one in drawn.values() for row in one.data]
            _reach(whole, channel, [value for value in found if value is not None])
        return whole


def _line(spec: Spec) -> int | None:
    """Index of the layer with the chart's curves over a number."""
    for index, part in enumerate(spec["layer"]):
        mark, encoding = part["mark"], part.get("encoding", {})
        if mark.get("type") == "line" and all(
            encoding.get(channel, {}).get("type") == "quantitative" for channel in ("x", "y")
        ):
            return index
    return None


def _axes(line: Mapping[str, Any]) -> tuple[str | None, ...]:
    across, up = line["encoding"]["x"], line["encoding"]["y"]
    return tuple(
        value for one in (across, up) for value in (one.get("title"), one.get("scale", {}).get("type"))
    )


def _broken(line: Mapping[str, Any], one: Pin, stroke: list[int], colour: str) -> Spec:
    """A layer of pinned curves like the chart's own line."""
    part = copy.deepcopy(dict(line))
    part["mark"] = {**part["mark"], "strokeDash": stroke, "color": colour, "opacity": 0.75}
    series = part["encoding"].pop("color", {}).get("field")
    if series:
        part["encoding"]["detail"] = {"field": series, "type": "nominal"}
    part["data"] = {"values": one.data}
    return part


def _reach(spec: Spec, channel: str, values: Sequence[float]) -> None:
    """Moves the ends of an axis outwards to values beyond them, in every layer."""
    for part in spec["layer"]:
        scale = part.get("encoding", {}).get(channel, {}).get("scale") or {}
        ends = scale.get("domain")
        if not values or not isinstance(ends, list) or len(ends) != 2:
            continue
        low, high = min(values), max(values)
        room = MARGIN * (ends[1] - ends[0]) if channel == "y" and scale.get("type") != "log" else 0.0
        scale["domain"] = [
            ends[0] if low >= ends[0] else low - room,
            ends[1] if high <= ends[1] else high + room,
        ]
