"""Pinned curves: they stay while the selection moves on, over a chart of the same axes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from app.charts.curves import Look, layer_curve
from app.charts.lines import numeric_lines
from app.charts.matrix import matrix
from app.charts.palette import LIGHT
from app.charts.pinned import STROKES, Pinned, pin
from app.charts.template import Chart
from app.frame import export

LOOK = Look("CKA", {"here": "#111111"}, selected=1)


def curve(values: list[float], first: int = 0, look: Look = LOOK) -> Chart:
    layers = range(first, first + len(values))
    return layer_curve(pl.DataFrame({"layer": layers, "series": "here", "value": values}), look, LIGHT)


def drawn(chart: Chart) -> list[dict]:
    """Lines of a chart that are broken."""
    return [part for part in chart.spec()["layer"] if part["mark"].get("strokeDash") in STROKES.values()]


def test_a_pinned_curve_keeps_its_numbers_and_the_axes_reach_it() -> None:
    kept = pin(curve([0.1, 5.0, 0.3, 0.4]).spec(), "as it was")
    assert kept is not None
    own = curve([0.5, 0.6])
    both = Pinned.over(own, [kept], "#222222")
    (line,) = drawn(both)
    assert [row["value"] for row in line["data"]["values"]] == [0.1, 5.0, 0.3, 0.4]
    assert line["mark"]["color"] == "#222222"
    ends, wider = (chart.spec()["layer"][-1]["encoding"]["x"]["scale"]["domain"] for chart in (own, both))
    assert (ends, wider) == ([-0.5, 1.5], [-0.5, 3])
    up = line["encoding"]["y"]["scale"]["domain"]
    assert up[0] < 0.1
    assert up[1] > 5.0
    domains = [part["encoding"]["y"]["scale"]["domain"] for part in both.spec()["layer"][1:3]]
    assert domains == [up, up], "every layer has the same axis"
    svg = export.svg_bytes(both, "t").decode()
    assert 'stroke-dasharray="7,4"' in svg
    assert drawn(own) == []


def test_curves_of_other_axes_are_not_drawn() -> None:
    kept = pin(curve([0.1, 0.2], look=Look("1 − CKA", {"here": "#111111"})).spec(), "other unit")
    assert kept is not None
    assert drawn(Pinned.over(curve([0.5, 0.6]), [kept], "#222222")) == []


def test_no_more_pins_are_drawn_than_strokes_tell_apart() -> None:
    pins = [pin(curve([value, value]).spec(), str(value)) for value in (0.1, 0.2, 0.3)]
    lines = drawn(Pinned.over(curve([0.5, 0.6]), [one for one in pins if one], "#222222"))
    assert {tuple(part["mark"]["strokeDash"]) for part in lines} == {(7, 4), (2, 3)}


def test_lines_over_a_logarithm_can_be_pinned_and_grids_cannot() -> None:
    table = pl.DataFrame({"x": [1.0, 10.0], "series": "s", "value": [1e-3, 1.0]})
    titles = {"x_title": "k", "y_title": "nats", "colors": {"s": "#111111"}, "palette": LIGHT}
    logs = numeric_lines(table, log_x=True, log_y=True, **titles)
    kept = pin(logs.spec(), "w")
    assert kept is not None
    lower = numeric_lines(table.with_columns(value=pl.col("value") * 100), log_x=True, log_y=True, **titles)
    both = Pinned.over(lower, [kept], "#222222")
    (line,) = drawn(both)
    assert line["encoding"]["y"]["scale"]["domain"][0] == 1e-3
    assert export.svg_bytes(both, "t").startswith(b"<svg")
    linear = numeric_lines(table, log_x=True, **titles)
    assert drawn(Pinned.over(linear, [kept], "#222222")) == [], "another scale"
    cells = pl.DataFrame({"layer": [0, 1], "head": 0, "value": [0.0, 1.0]})
    named = {"x_title": "x", "y_title": "y", "value_title": "v", "palette": LIGHT}
    assert pin(matrix(cells, x="layer", y="head", value="value", **named).spec(), "w") is None


def test_pin_choose_another_site_and_unpin(planted: Path, open_app: Callable[..., AppTest]) -> None:
    app = open_app(planted, "similarity", a="base", b="tuned")
    first = app.markdown[[m.value.startswith("#### ") for m in app.markdown].index(True)].value
    app.button(key="pin-cka").click().run()
    site = next(one for one in app.selectbox if one.label == "Site")
    site.set_value(next(value for value in site.options if value != site.value)).run()
    assert not app.exception
    listed = app.button(key="unpin-cka-0")
    assert listed.label.startswith("Dashed: ")
    words = listed.label.removeprefix("Dashed: ").replace("\\", "")
    assert words == first.removeprefix("#### ").replace("\\", "")
    listed.click().run()
    assert not app.exception
    with pytest.raises(KeyError):
        app.button(key="unpin-cka-0")
