"""What charts share: formats of numbers, ticks, colours of series, tooltips, reference lines, clicks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from app.charts.palette import Palette
from app.charts.template import Rows, hole, layer

Series = tuple[tuple[str, str], ...]
"""Names of series with their colours, in legend order."""
Kind = Literal["quantitative", "nominal", "ordinal"]
PICK = "pick"
PLAIN = ".9~g"
"""Numbers on an axis. Without a precision d3 takes one from the step, and writes 10 as 1e+1."""
UNDER_NAMES: dict[str, Any] = {"titleAnchor": "end"}
"""Of an axis below rows with long names: its title ends where the plot does and may begin under the names; a
centred one sticks out of a narrow window."""
WIDE = {"x": alt.XValue(0), "x2": alt.X2Value("width")}
HIGH = {"y": alt.YValue(0), "y2": alt.Y2Value("height")}
DASHED: dict[str, Any] = {"strokeDash": [5, 4], "strokeWidth": 1.5}


LETTER = 6.2
"""Pixels that a letter of an axis' names takes."""
NARROW = 330
"""Pixels that the plot of a telephone's chart has: names that have room there never stand upright."""


def angle_of(names: Sequence[Any]) -> int | dict[str, str]:
    """Of the names below a horizontal axis: upright where the longest has no room."""
    room = LETTER * max((len(str(name)) for name in names), default=0) + 4
    if room * len(names) <= NARROW:
        return 0
    return {"expr": f"width / {len(names)} < {room} ? -90 : 0"}


def log_format(low: float, high: float) -> str:
    """How numbers on a logarithmic axis are written: plainly where that is short, else as 1e-6."""
    return PLAIN if low >= 1e-3 and high < 1e6 else "~e"


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: the coarsest of decades, 1-2-5 and finer steps that gives four or more."""
    fine = tuple(1.0 + step / 10 for step in range(90))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), fine):
        every = [step * 10.0**power for power in powers for step in steps]
        found = [float(f"{tick:.3g}") for tick in every if low <= tick <= high]
        if len(found) >= 4:
            break
    return found


def tip(field: str, kind: Kind, title: str | None = None, **more: Any) -> alt.Tooltip:
    """One line of a tooltip.

    A tooltip takes entries with the titles "image" and "title" for a picture and a heading; a series of such
    a name is written with a no-break space behind it.
    """
    said = f"{title}\u00a0" if title in ("image", "title") else title
    return alt.Tooltip(field=field, type=kind, title=said, **more)


def pick(*fields: str, nearest: bool | Any = alt.Undefined) -> alt.Parameter:
    """The selection parameter of charts that can be clicked."""
    return alt.selection_point(name=PICK, fields=list(fields), toggle=False, clear=False, nearest=nearest)


def hue(series: Series, symbol: str = "stroke") -> alt.Color:
    """Colour by series, with a legend above the plot when there is more than one."""
    room = 36 + 6 * max((len(name) for name, _ in series), default=0)  # pixels of one entry
    columns = alt.ExprRef(f"max(1, floor(width / {room}))")
    legend = alt.Legend(orient="top", symbolType=symbol, columns=columns, symbolOpacity=1, labelLimit=220)
    scale = alt.Scale(domain=[name for name, _ in series], range=[colour for _, colour in series])
    return alt.Color("series:N", title=None, scale=scale, legend=legend if len(series) > 1 else None)


def across(data: str, y: alt.Y, palette: Palette, **more: Any) -> list[alt.Chart]:
    """A dashed horizontal line at `y` with its name, in column `label`, at the right end.

    Args:
        more: of the name's mark.
    """
    text: dict[str, Any] = {"align": "right", "baseline": "bottom", "dy": -3, "fontSize": 11, **more}
    place = {"x": alt.XValue("width"), "y": y, "text": alt.Text("label:N")}
    halo = layer(data, "halo").mark_text(
        **text, color=palette.page, stroke=palette.page, strokeWidth=4, strokeJoin="round"
    )
    return [
        layer(data).mark_rule(color=palette.null, **DASHED).encode(y=y),
        halo.encode(**place),
        layer(data).mark_text(**text, color=palette.text).encode(**place),
    ]


@dataclass(frozen=True)
class Marks:
    """Data and holes of vertical lines that `upright` draws."""

    data: dict[str, Rows]
    holes: dict[str, Any]

    @classmethod
    def of(cls, marks: Mapping[str, float], middle: float, field: str) -> Marks:
        """Named values of the horizontal axis: names stand on the side of the line where there is more room.

        Args:
            middle: of the axis. field: the column that the axis shows.
        """
        data: dict[str, Rows] = {}
        holes: dict[str, Any] = {}
        for number, (name, at) in enumerate(marks.items()):
            align, move = ("left", 5) if at <= middle else ("right", -5)
            data[f"mark {number}"] = [{field: at, "label": name}]
            holes |= {f"mark {number} align": align, f"mark {number} dx": move}
        return cls(data, holes)


def upright(number: int, x: alt.X, palette: Palette) -> list[alt.Chart]:
    """A dashed vertical line with its name beside it; names of several lines lie below each other."""
    data = f"mark {number}"
    side: dict[str, Any] = {"align": hole(f"{data} align"), "dx": hole(f"{data} dx")}
    text = layer(data).mark_text(baseline="top", fontSize=11, color=palette.text, **side)
    return [
        layer(data).mark_rule(color=palette.mark, **DASHED).encode(x=x),
        text.encode(x=x, y=alt.YValue(4 + 15 * number), text=alt.Text("label:N")),
    ]
