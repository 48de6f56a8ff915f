"""Charts are Altair templates that are built once for each look; data are put in afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import pytest

from app.charts import bins, grids
from app.charts.bars import interval_bars
from app.charts.curves import Look, layer_curve
from app.charts.intervals import interval_dots
from app.charts.lines import numeric_lines, value_dots
from app.charts.log_points import log_points
from app.charts.matrix import matrix
from app.charts.palette import LIGHT
from app.charts.points import named_points
from app.charts.profiles import ratio_profile
from app.charts.scatter import forest, scatter
from app.charts.steps import remaining_curve
from app.charts.tall import dot_rows, tall_grid
from app.charts.template import Chart
from app.frame import export

COLORS = {"one": LIGHT.a, "two": LIGHT.b}


def table(size: int, **columns: Any) -> pl.DataFrame:
    """Rows with every column that charts ask for, of values that differ with the size."""
    drawn = np.random.default_rng(size).lognormal(sigma=1.0 + size / 10, size=2 * size)
    both = {"series": ["one", "two"] * size, "value": drawn, "low": drawn * 0.8, "high": drawn * 1.3}
    names = [f"row {number // 2}" for number in range(2 * size)]
    places = {"layer": [number // 2 for number in range(2 * size)], "x": drawn, "y": drawn[::-1]}
    more = {"name": names, "candidate": names, "label": names, "n": 3, "count": 3, "of": 5, "at": drawn}
    return pl.DataFrame({**both, **places, **more, "most": drawn * 2, "hollow": False, **columns})


def own(size: int, **columns: Any) -> pl.DataFrame:
    """The same with every name once."""
    return table(size, **columns).unique("name", maintain_order=True)


def curve(size: int) -> Chart:
    look = Look("CKA", COLORS, references={"chance": size / 10}, selected=size - 1, labels={-1: "in"})
    return layer_curve(table(size), look, LIGHT, table(size).select("layer", "low", "high"))


def points(size: int) -> Chart:
    looks, ends = {"one": (LIGHT.a, "circle"), "two": (LIGHT.b, "square")}, (1e-3, 10.0 * size)
    domains = (ends, ends)
    return log_points(table(size), x_title="x", y_title="y", looks=looks, palette=LIGHT, domains=domains)


def cells(size: int, **more: Any) -> Chart:
    drawn = own(size).with_columns(value=pl.when(pl.col("layer") > 0).then("value"))
    titles = {"x_title": "x", "y_title": "y", "value_title": "v"}
    return matrix(drawn, x="layer", y="name", value="value", palette=LIGHT, **titles, **more)


def heat(size: int) -> Chart:
    drawn = table(size).with_columns(other=pl.col("layer"))
    titles = {"x_title": "x", "y_title": "y", "value_title": "v"}
    return grids.layer_heatmap(drawn, selected=size - 1, palette=LIGHT, **titles)


def log_bins(size: int) -> Chart:
    return grids.histogram(table(size), x_title="x", y_title="y", mean=size, palette=LIGHT)


def rank(size: int) -> Chart:
    return numeric_lines(
        table(size),
        null=table(size).select("x", "low", "high"),
        marks={"left": 0.1, f"right {size}": 1.0 * size},
        log_x=True,
        log_y=size > 0,
        **XY,
    )


XY: dict[str, Any] = {"x_title": "x", "y_title": "y", "colors": COLORS, "palette": LIGHT}
X: dict[str, Any] = {"x_title": "x", "colors": COLORS, "palette": LIGHT}
EVERY: dict[str, Callable[[int], Chart]] = {
    "curve": curve,
    "log points": points,
    "matrix": lambda size: cells(size, selected={"layer": size - 1}, labels=True),
    "two-sided matrix": lambda size: cells(size, diverging=True, labels=True),
    "heatmap": heat,
    "stacked bars": lambda size: grids.stacked_bars(
        table(size), x_title="n", y_title=None, colors=list(COLORS.values()), series=list(COLORS)
    ),
    "logarithmic histogram": log_bins,
    "histogram": lambda size: bins.histogram(table(size), marks={"found": size / 7}, **XY),
    "bars": lambda size: interval_bars(own(size), references={"all": 9.0 * size}, **XY),
    "intervals": lambda size: interval_dots(table(size), reference=("none", 0.0), **X),
    "lines": rank,
    "values": lambda size: value_dots(
        own(size, null_low=0.1, null_high=0.2, short="s"), x_title="x", palette=LIGHT, limits=(0, size)
    ),
    "named points": lambda size: named_points(table(size), **XY),
    "profile": lambda size: ratio_profile(
        table(size), y_title="R", colors=COLORS, palette=LIGHT, marked=[size - 1]
    ),
    "scatter": lambda size: scatter(table(size), text="label", **XY),
    "forest": lambda size: forest(own(size), x_title="x", palette=LIGHT),
    "steps": lambda size: remaining_curve(table(size), at=size / 9, dashed="two", **XY),
    "dots": lambda size: dot_rows(table(size), joined=True, selected=f"row {size - 1}", **X),
    "grid": lambda size: tall_grid(
        table(size), value_title="v", palette=LIGHT, shade="ratio", selected="row 1", ends=["row 0"]
    ),
}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[alt.LayerChart]:
    """Every Altair chart that is turned into a specification."""
    found: list[alt.LayerChart] = []
    whole = alt.LayerChart.to_dict

    def counted(self: alt.LayerChart, *args: Any, **more: Any) -> dict[str, Any]:
        found.append(self)
        return whole(self, *args, **more)

    monkeypatch.setattr(alt.LayerChart, "to_dict", counted)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_other_data_do_not_build_the_template_again(name: str, builds: list[alt.LayerChart]) -> None:
    first = EVERY[name](4)
    known = len(builds)
    assert known <= 1
    second = EVERY[name](7)
    assert len(builds) == known
    assert second.template is first.template
    assert first.spec()["layer"] != second.spec()["layer"]


def layers(chart: alt.LayerChart) -> list[dict[str, Any]]:
    """Layers as Altair writes them, with the data that it moves to the top when there is one layer."""
    spec = chart.to_dict()
    shared = {"data": {"values": spec["datasets"][spec["data"]["name"]]}} if "data" in spec else {}
    return [{**shared, **part} for part in spec["layer"]]


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_valid_altair_with_its_data_inside(name: str) -> None:
    chart = EVERY[name](5)
    spec = chart.spec()
    given = chart.altair()  # raises on what Altair's schema doesn't know
    assert isinstance(given, alt.LayerChart)
    assert layers(given.properties(width=300)) == spec["layer"]
    assert len(chart.template["layer"]) == len(spec["layer"])
    used = {part["data"]["name"] for part in chart.template["layer"]}
    assert used == set(chart.data)  # no data set is carried along that nothing draws
    assert [part["data"]["values"] for part in spec["layer"]] == [
        chart.data[part["data"]["name"]] for part in chart.template["layer"]
    ]
    json.dumps(spec, allow_nan=False)
    assert export.svg_bytes(chart, "A finding").startswith(b"<svg")


def test_what_is_drawn_on_cannot_change_the_template() -> None:
    first = rank(4)
    before = json.dumps(first.template)
    spec = first.spec()
    spec["layer"][0]["encoding"]["x"]["scale"]["domain"].append("spoilt")
    spec["layer"][0]["mark"]["color"] = spec["config"]["axisY"]["labelFlush"] = "spoilt"
    assert json.dumps(first.template) == before
    assert "spoilt" not in json.dumps(rank(4).spec())


def test_names_that_look_like_holes_are_names() -> None:
    """The mark of a hole is drawn by each process, so that no name can have it."""
    for name in ("hole:ends", "ends", "expr", ":", ""):
        rows = pl.DataFrame({"x": [1.0, 2.0], "series": [name] * 2, "value": [1.0, 2.0]})
        spec = numeric_lines(rows, x_title=name, y_title=name, colors={name: "#000"}, palette=LIGHT).spec()
        encoding = spec["layer"][0]["encoding"]
        assert encoding["color"]["scale"]["domain"] == [name]
        assert (encoding["x"]["title"], encoding["y"]["title"]) == (name, name)


def test_the_theme_of_a_notebook_has_no_part_in_a_template() -> None:
    usual = named_points(table(3), **{**XY, "x_title": "asked"}).spec()
    with alt.theme.enable("dark"):
        dark = named_points(table(3), **{**XY, "x_title": "asked in the dark"}).spec()
    assert json.dumps(dark).replace("asked in the dark", "asked") == json.dumps(usual)
    assert usual["config"] == {"axisY": {"labelFlush": False}, "aria": False, "mark": {"aria": False}}
    assert usual["$schema"] == alt.SCHEMA_URL


def test_the_code_of_a_chart_opens_its_file_as_an_altair_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart = curve(4)
    monkeypatch.chdir(tmp_path)
    Path(export.file_name("similarity", export.LITE)).write_bytes(export.json_bytes(chart, "ΔKL «finding»"))
    scope: dict[str, Any] = {}
    exec(export.chart_code("similarity"), scope)
    found = scope["chart"]
    assert isinstance(found, alt.LayerChart)
    drawn, wanted = found.to_dict(), export.print_spec(chart, "ΔKL «finding»")
    assert layers(found) == wanted["layer"]
    assert {name: drawn[name] for name in ("title", "width", "height", "params")} == {
        name: wanted[name] for name in ("title", "width", "height", "params")
    }
