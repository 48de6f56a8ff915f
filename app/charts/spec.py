"""Vega-Lite specifications as plain dictionaries.

Building and validating the same chart from Altair objects costs about 70 ms of CPU time; a dictionary
costs less than one, which is what lets a slider move stay inside its budget. Tests validate every
specification against the Vega-Lite schema through `as_chart`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

Spec = dict[str, Any]
PICK = "pick"
PLAIN = ".9~g"
"""Numbers on an axis. Without a precision d3 takes one from the step, and writes 10 as 1e+1."""
UNDER_NAMES: Spec = {"titleAnchor": "end"}
"""Of an axis below rows with long names: its title ends where the plot does and may begin under the names; a
centred one sticks out of a narrow window."""
PLAIN = ".9~g"
"""Numbers on an axis. Without a precision d3 picks one from the step and writes 10 as 1e+1."""


def as_chart(spec: Spec) -> alt.TopLevelMixin:
    """The same chart as an Altair object, schema-checked; for notebooks and tests."""
    return alt.Chart.from_dict(spec)


def values(table: pl.DataFrame | Sequence[Mapping[str, Any]]) -> Spec:
    """Inline data; NaN becomes null, which Vega-Lite leaves out."""
    if isinstance(table, pl.DataFrame):
        floats = [c for c, t in table.schema.items() if t.is_float()]
        table = table.with_columns(pl.col(floats).fill_nan(None)).to_dicts() if floats else table.to_dicts()
    return {"values": list(table)}


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


def layer(data: Spec, mark: Spec, encoding: Spec, **more: Any) -> Spec:
    """One layer of a chart."""
    return {"data": data, "mark": mark, "encoding": encoding, **more}


def channel(field: str, kind: str, title: str | None = None, **more: Any) -> Spec:
    """One encoding channel; `kind` is quantitative, nominal or ordinal."""
    return {"field": field, "type": kind, "title": title, **more}


def chart(layers: list[Spec], height: int) -> Spec:
    """A layered chart that fills the width it is given."""
    return {
        "$schema": alt.SCHEMA_URL,
        "layer": layers,
        "height": height,
        "width": "container",
        "autosize": {"type": "fit", "contains": "padding"},
        "config": {"axisY": {"labelFlush": False}},  # else the first name of a row is moved off its row
    }


def pick(fields: Sequence[str]) -> list[Spec]:
    """The selection parameter of charts that can be clicked."""
    return [
        {
            "name": PICK,
            "select": {"type": "point", "fields": list(fields), "toggle": False, "clear": False},
        }
    ]


def color(domain: Sequence[str], palette: Sequence[str], symbol: str = "stroke") -> Spec:
    """Colour by series, with a legend above the plot when there is more than one."""
    room = 36 + 6 * max((len(name) for name in domain), default=0)  # pixels of one entry
    columns = {"expr": f"max(1, floor(width / {room}))"}
    legend = {
        "orient": "top",
        "symbolType": symbol,
        "columns": columns,
        "symbolOpacity": 1,
        "labelLimit": 220,
    }
    return channel(
        "series",
        "nominal",
        scale={"domain": list(domain), "range": list(palette)},
        legend=legend if len(domain) > 1 else None,
    )
