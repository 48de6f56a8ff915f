"""The grid and the bars: valid specifications, drawn by a real renderer, showing what the table holds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.charts.bars import interval_bars
from app.charts.grids import layer_heatmap
from app.charts.matrix import matrix, robust_ends
from app.charts.palette import DARK, LIGHT, Palette
from app.charts.spec import angle_of
from app.charts.template import Chart
from app.frame import export

CELLS = pl.DataFrame(
    {
        "layer": [0, 0, 1, 1, 2, 2],
        "head": [0, 1, 0, 1, 0, 1],
        "value": [-2.0, 1.0, None, 4.0, float("nan"), 0.5],
    }
)
BARS = pl.DataFrame(
    {
        "name": ["6", "2", "0"],
        "value": [60.0, 45.0, 0.0],
        "low": [50.0, 40.0, None],
        "high": [70.0, 51.0, None],
        "series": ["carries", "carries", "rest"],
    }
)


def cells(palette: Palette = LIGHT, **more: Any) -> Chart:
    return matrix(
        CELLS,
        x="layer",
        y="head",
        value="value",
        x_title="Block",
        y_title="Head",
        value_title="coverage, %",
        palette=palette,
        **more,
    )


def bars(palette: Palette = LIGHT) -> Chart:
    colors = {"carries": palette.b, "rest": palette.null}
    return interval_bars(
        BARS, x_title="Head", y_title="coverage, %", colors=colors, palette=palette, references={"ALL": 100.0}
    )


@pytest.mark.parametrize(
    ("most", "format", "ticks"),
    [(1.0, ",.0f", [0.0, 1.0]), (4.0, ",.0f", [0.0, 2.0, 4.0]), (1.0, ".3g", [0.0, 0.5, 1.0])],
)
def test_no_number_stands_twice_in_a_legend(most: float, format: str, ticks: list[float]) -> None:
    """Of counts from none to one the middle is no count."""
    table = pl.DataFrame({"layer": range(4), "head": 0, "value": [0.0, 0.0, most, most]})
    titles = {"x_title": "x", "y_title": "y", "value_title": "v", "palette": LIGHT}
    chart = matrix(table, x="layer", y="head", value="value", format=format, **titles)
    assert chart.spec()["layer"][0]["encoding"]["color"]["legend"]["values"] == ticks


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"diverging": True, "labels": True},
        {"selected": {"layer": 1}, "labels": True},
        {"selected": {"layer": 1, "head": 0}},
        {"selected": {"head": 1}},
    ],
)
def test_grids_are_valid_and_drawn(palette: Palette, more: dict[str, Any]) -> None:
    spec = cells(palette, **more)
    spec.altair().to_dict()
    svg = export.svg_bytes(spec, "A finding").decode()
    for text in ("A finding", ">Block<", ">Head<", "coverage, %"):
        assert text in svg


def test_cells_without_a_value_are_frames_and_coloured_ones_are_not() -> None:
    full, blank = cells().spec()["layer"]
    assert [(r["layer"], r["head"]) for r in full["data"]["values"]] == [(0, 0), (0, 1), (1, 1), (2, 1)]
    assert [(r["layer"], r["head"]) for r in blank["data"]["values"]] == [(1, 0), (2, 0)]
    assert blank["mark"]["fillOpacity"] == 0
    assert {row["said"] for row in blank["data"]["values"]} == {"no value"}


def test_a_diverging_scale_is_symmetric_and_neutral_at_zero() -> None:
    scale = cells(diverging=True).spec()["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"] == [-4.0, 0.0, 4.0]
    assert scale["range"] == [LIGHT.a, LIGHT.scheme[0], LIGHT.b]
    plain = cells().spec()["layer"][0]["encoding"]["color"]["scale"]
    assert (plain["domain"][0], plain["domain"][-1]) == (-2.0, 4.0)
    assert len(plain["domain"]) == len(plain["range"])


def test_only_a_grid_with_a_selection_takes_clicks() -> None:
    assert "params" not in cells().spec()
    chosen = cells(selected={"layer": 1}).spec()
    assert chosen["params"][0]["select"]["fields"] == ["layer", "head"]
    halo, outline = chosen["layer"][-2:]
    assert halo["mark"]["strokeWidth"] > outline["mark"]["strokeWidth"]
    assert (halo["mark"]["stroke"], outline["mark"]["stroke"]) == (LIGHT.scheme[0], LIGHT.mark)
    assert outline["data"]["values"] == [{"layer": 1}]
    assert outline["encoding"]["y"] == {"value": 0}


def test_a_grid_with_one_value_or_none_still_draws() -> None:
    for frame in (CELLS.head(1), CELLS[2:3], CELLS.clear()):
        spec = matrix(
            frame,
            x="layer",
            y="head",
            value="value",
            x_title="x",
            y_title="y",
            value_title="v",
            palette=LIGHT,
            labels=True,
        )
        assert export.svg_bytes(spec, "t").startswith(b"<svg")


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_bars_keep_their_order_and_leave_out_unknown_intervals(palette: Palette) -> None:
    spec = bars(palette)
    spec.altair().to_dict()
    svg = export.svg_bytes(spec, "A finding").decode()
    for text in ("A finding", ">Head<", "coverage, %", "ALL"):
        assert text in svg
    drawn, intervals = spec.spec()["layer"][:2]
    assert drawn["encoding"]["x"]["scale"]["domain"] == ["6", "2", "0"]
    assert [row["name"] for row in intervals["data"]["values"]] == ["6", "2"]
    assert drawn["encoding"]["y"]["scale"]["domain"][1] > 100


def test_a_few_extreme_cells_leave_colours_for_all_others_and_the_legend_says_so() -> None:
    rng = np.random.default_rng(0)
    usual = pl.Series(rng.normal(size=200))
    low, high = robust_ends(pl.concat([usual, pl.Series([-1e4, 900.0])]))
    assert -20 < low < usual.min()  # ten times as far as nine cells in ten
    assert usual.max() < high < 20
    assert robust_ends(usual) == (usual.min(), usual.max())  # nothing extreme: every value has its colour
    assert robust_ends(pl.Series([0.0] * 30 + [5.0])) == (
        0.0,
        5.0,
    )  # a single cell that is not 0 is the finding
    assert robust_ends(pl.Series([], dtype=pl.Float64)) == (0.0, 1.0)

    def drawn(values: pl.Series) -> tuple[dict[str, Any], dict[str, Any], str]:
        table = pl.DataFrame({"layer": range(len(values)), "head": 0, "value": values})
        titles = {"x_title": "x", "y_title": "y", "value_title": "v", "palette": LIGHT}
        chart = matrix(table, x="layer", y="head", value="value", **titles)
        hue = chart.spec()["layer"][0]["encoding"]["color"]
        return hue["legend"], hue["scale"], export.svg_bytes(chart, "A finding").decode()

    _, scale, svg = drawn(pl.concat([usual, pl.Series([-1e4, 900.0])]))
    assert (scale["domain"][0], scale["domain"][-1], scale["clamp"]) == (low, high, True)
    assert f"≤ −{abs(low):#.3g}" in svg
    assert f"≥ {high:#.3g}" in svg
    plain, _, _ = drawn(usual)
    assert "≤" not in plain["labelExpr"]
    assert "≥" not in plain["labelExpr"]


def test_compressed_colours_tell_cells_of_any_size_apart() -> None:
    """Equal steps of colour are equal steps of d3's symlog, sign(v) log(1 + |v|/c), from end to end."""
    values = [-1e4, -3e3, -800.0, -90.0, -12.0, -1.0, 0.0, 40.0]
    table = pl.DataFrame({"layer": range(8), "head": 0, "value": values})
    titles = {"x_title": "x", "y_title": "y", "value_title": "v", "palette": LIGHT}
    chart = matrix(table, x="layer", y="head", value="value", format=",.3~r", compressed=10.0, **titles)
    hue = chart.spec()["layer"][0]["encoding"]["color"]
    domain, (low, middle, high) = np.array(hue["scale"]["domain"]), hue["legend"]["values"]
    place = np.sign(domain) * np.log1p(np.abs(domain) / 10.0)
    np.testing.assert_allclose(np.diff(place), (place[-1] - place[0]) / 5)
    assert (low, high) == (domain[0], domain[-1]) == (-1e4, 40.0)
    assert np.sign(middle) * np.log1p(abs(middle) / 10.0) == pytest.approx((place[0] + place[-1]) / 2)
    svg = export.svg_bytes(chart, "A finding").decode()
    assert ">−10,000<" in svg
    fills = re.findall(r'aria-roledescription="rect mark"[^>]*?fill="(rgb[^"]+)"', svg)
    assert len(set(fills)) == len(values)
    constant = table.with_columns(value=pl.lit(0.0))
    for frame in (constant, table.clear()):
        assert matrix(frame, x="layer", y="head", value="value", compressed=10.0, **titles).altair()


def test_one_extreme_pair_of_layers_leaves_colours_for_all_others() -> None:
    layers = [(row, column) for row in range(12) for column in range(12)]
    drawn = pl.DataFrame(layers, schema=["layer", "other"], orient="row")
    usual = np.random.default_rng(1).uniform(0.0, 0.01, size=drawn.height)
    extreme = drawn.with_columns(value=pl.Series(usual).set(pl.Series(usual) == usual.max(), 0.9))
    titles = {"x_title": "x", "y_title": "y", "value_title": "v", "palette": LIGHT}
    chart = layer_heatmap(extreme, selected=3, **titles)
    scale = chart.spec()["layer"][0]["encoding"]["color"]["scale"]
    assert scale["clamp"] is True
    assert scale["domain"][1] < 0.1  # ten times as far from the median as nineteen cells in twenty
    assert "≥ " in export.svg_bytes(chart, "A finding").decode()
    plain = layer_heatmap(extreme.with_columns(value=pl.Series(usual)), selected=3, **titles)
    hue = plain.spec()["layer"][0]["encoding"]["color"]
    assert hue["scale"]["domain"] == [usual.min(), usual.max()]
    assert "≥" not in hue["legend"]["labelExpr"]


@pytest.mark.parametrize(("blocks", "shown"), [(8, True), (80, False)])
def test_numbers_stand_only_in_cells_that_hold_them(blocks: int, shown: bool) -> None:
    table = pl.DataFrame(
        {"layer": range(blocks), "head": 0, "coverage": [0.12345 + i for i in range(blocks)]}
    )
    spec = matrix(
        table,
        x="layer",
        y="head",
        value="coverage",
        x_title="Block",
        y_title="Head",
        value_title="coverage, %",
        palette=LIGHT,
        labels=True,
    )
    svg = export.svg_bytes(spec, "A finding").decode()
    written = [part for part in svg.split("<text")[1:] if 'opacity="0"' not in part and ">2.12<" in part]
    assert bool(written) == shown


def test_numbers_are_as_wide_as_their_format_writes_them() -> None:
    """14 cells of some 40 pixels have room for 3 digits, not for 3 before and 3 behind the point."""
    table = pl.DataFrame({"layer": range(14), "head": 0, "coverage": [123.4567 + i for i in range(14)]})
    titles = {"x_title": "Block", "y_title": "Head", "value_title": "coverage, %", "palette": LIGHT}
    where = {"x": "layer", "y": "head", "value": "coverage", "labels": True}
    for format, number, shown in ((".3g", "124", True), (".3f", "124.457", False)):
        svg = export.svg_bytes(matrix(table, format=format, **where, **titles), "A finding").decode()
        texts = [part for part in svg.split("<text")[1:] if f">{number}<" in part]
        assert [part for part in texts if 'opacity="0"' not in part] == (texts if shown else [])
        assert bool(texts)


@pytest.mark.parametrize("count", [3, 30])
def test_many_names_stand_upright_and_none_lies_over_another(count: int) -> None:
    """Tokens of a prompt below bars and cells: horizontal while few, upright where they have no room."""
    names = [f'{i} "<|im_start|>"' for i in range(count)]
    table = pl.DataFrame({"name": names, "value": 1.0, "low": None, "high": None, "series": "a", "up": 0})
    drawn = interval_bars(table, x_title="t", y_title="v", colors={"a": LIGHT.b}, palette=LIGHT)
    cells = matrix(
        table, x="name", y="up", value="value", x_title="t", y_title="u", value_title="v", palette=LIGHT
    )
    for chart in (drawn, cells):
        svg = export.svg_bytes(chart, "A finding").decode()
        texts = (part.partition("</text>")[0] for part in svg.split("<text")[1:])
        turned = [("rotate(-90" in text) for text in texts if "im_start" in text]
        assert turned
        assert set(turned) == {count > 3}


def test_names_stand_upright_where_a_narrow_window_has_no_room() -> None:
    """Few long ones too, else all but the first and the last are left out."""
    assert angle_of(["a", "b", "c"]) == 0
    assert angle_of(()) == 0
    tokens = [f"{i} “␣apples”" for i in range(10)]
    found = angle_of(tokens)
    assert isinstance(found, dict)
    room = 6.2 * len(tokens[0]) + 4
    assert found["expr"] == f"width / 10 < {room} ? -90 : 0"
    assert 330 / 10 < room < 1200 / 10, "upright on a telephone, level in a wide window"


def test_the_name_of_a_line_is_read_over_a_bar() -> None:
    """Under its letters lie the same ones, outlined in the page's colour."""
    layers = bars().spec()["layer"]
    named = [one for one in layers if one["encoding"].get("text", {}).get("field") == "label"]
    halo, name = (one["mark"] for one in named)
    assert (halo["stroke"], halo["strokeWidth"]) == (LIGHT.page, 4)
    assert name["color"] == LIGHT.text
    assert "stroke" not in name
