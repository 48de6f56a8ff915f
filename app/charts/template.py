"""A chart: an Altair template, built once for each look, and the data and numbers that are put into it.

A look is what a chart draws whatever its data: titles, series and their colours, which layers there are. From
it Altair builds and validates a specification in tens of milliseconds. What follows from the data (rows, ends
of axes, ticks, formats of numbers) has holes in the template; filling them takes less than a millisecond,
which lets a slider move stay inside its budget.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl

Spec = dict[str, Any]
Rows = list[dict[str, Any]]
LOOKS = 128
"""Templates that are kept for each kind of chart, the ones used last."""
_HOLE = f"{secrets.token_hex(8)}:"
"""Before the name of a hole. Drawn anew by each process: no name of a series or title can begin like it."""


@dataclass(frozen=True)
class Chart:
    """A template with what belongs into it.

    Args:
        template: what a function under `template` returned.
        data: rows of each of the template's data sets.
        holes: values of the template's holes.
        height: of the plot in pixels.
    """

    template: Spec
    data: Mapping[str, Rows]
    holes: Mapping[str, Any] = field(default_factory=dict)
    height: int = 300

    def spec(self) -> Spec:
        """The Vega-Lite specification with its data inside; shares nothing with the template.

        Raises:
            KeyError: a data set or a hole of the template was given nothing.
        """
        whole = _filled(self.template, self.holes)
        for part in whole["layer"]:
            part["data"] = {"values": self.data[part["data"]["name"]]}
        return {**whole, "height": self.height}

    def altair(self) -> alt.LayerChart:
        """The same as an Altair chart, validated, for notebooks: to be changed, combined and saved there."""
        return alt.LayerChart.from_dict(self.spec())


def template(build: Callable[..., alt.LayerChart]) -> functools._lru_cache_wrapper[Spec]:
    """A function that builds a chart from a look, all of it hashable, turned into one that does so once."""

    @functools.lru_cache(maxsize=LOOKS)
    @functools.wraps(build)
    def built(*look: Any, **more: Any) -> Spec:
        # Below the top level a notebook's theme and data transformer have no part in it.
        spec = build(*look, **more).to_dict(context={"top_level": False, "pre_transform": False})
        shared = spec.pop("data", None)  # Altair moves what layers have in common to the top
        for part in spec["layer"]:
            part.setdefault("data", shared)
        flush = {"labelFlush": False}  # else the first name of a row is moved off its row
        # one picture with one text, which the page gives it: marks and axes are no further ones
        config = {"axisY": flush, "aria": False, "mark": {"aria": False}}
        return {"$schema": alt.SCHEMA_URL, **spec, "config": config}

    return built


def layered(*layers: alt.Chart, **more: Any) -> alt.LayerChart:
    """Layers over each other, as wide as the place that they are put into."""
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return alt.LayerChart(layer=layers, width="container", autosize=fit, **more)


def layer(data: str, name: str | None = None) -> alt.Chart:
    """A layer over a data set of the chart; one that takes clicks needs a name."""
    return alt.Chart(alt.NamedData(name=data), name=alt.Undefined if name is None else name)


def hole(name: str) -> alt.ExprRef:
    """A place for a value that follows from the data."""
    return alt.ExprRef(_HOLE + name)


def text_hole(name: str) -> str:
    """A place for a text that follows from the data, where Vega-Lite takes texts alone, as in formats."""
    return _HOLE + name


def rows(table: pl.DataFrame) -> Rows:
    """Rows of a table; NaN becomes null, which Vega-Lite leaves out."""
    floats = [c for c, t in table.schema.items() if t.is_float()]
    return (table.with_columns(pl.col(floats).fill_nan(None)) if floats else table).to_dicts()


def look_of(colors: Mapping[str, str] | Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Series with their colours, in legend order, as part of a look."""
    return tuple(colors.items() if isinstance(colors, Mapping) else colors)


def _filled(node: Any, holes: Mapping[str, Any]) -> Any:
    """A copy with every hole filled."""
    if isinstance(node, str):
        return holes[node.removeprefix(_HOLE)] if node.startswith(_HOLE) else node
    if isinstance(node, list):
        return [_filled(part, holes) for part in node]
    if not isinstance(node, dict):
        return node
    named = node.get("expr")
    if isinstance(named, str) and named.startswith(_HOLE):
        return holes[named.removeprefix(_HOLE)]
    return {key: _filled(part, holes) for key, part in node.items()}
