"""Chart specifications: valid Vega-Lite, drawn by a real renderer, with the marks they promise."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
import vl_convert as vlc

from app.charts.bars import interval_bars
from app.charts.curves import Look, layer_curve
from app.charts.grids import histogram, layer_heatmap, stacked_bars
from app.charts.intervals import interval_dots
from app.charts.lines import numeric_lines
from app.charts.palette import DARK, LIGHT, Palette
from app.charts.template import Chart
from app.frame import export

CURVE = pl.DataFrame(
    {
        "layer": [0, 1, 2, 0, 1, 2],
        "series": ["one"] * 3 + ["two"] * 3,
        "value": [1.0, 0.9, 0.5, 1.0, 0.8, float("nan")],
        "low": [0.99, 0.85, 0.4, None, None, None],
        "high": [1.0, 0.95, 0.6, None, None, None],
    }
)
NULL = pl.DataFrame({"layer": [0, 1, 2], "low": [-0.1, -0.1, -0.1], "high": [0.1, 0.1, 0.1]})
GRID = pl.DataFrame({"layer": [0, 0, 1, 1], "other": [0, 1, 0, 1], "value": [1.0, 0.2, 0.3, 0.9]})


def curve(selected: int | None = 1, palette: Palette = LIGHT) -> Chart:
    look = Look("CKA", {"one": palette.a, "two": palette.b}, references={"chance": 0.3}, selected=selected)
    return layer_curve(CURVE, look, palette, NULL)


def every_chart(palette: Palette) -> dict[str, Chart]:
    bars = pl.DataFrame({"name": ["x", "y"], "series": ["s", "s"], "value": [1, 2]})
    bins = pl.DataFrame({"low": [1e-4, 1e-3], "high": [1e-3, 1e-2], "count": [3, 5]})
    return {
        "curve": curve(palette=palette),
        "heatmap": layer_heatmap(
            GRID, x_title="x", y_title="y", value_title="CKA", selected=0, palette=palette
        ),
        "bars": stacked_bars(bars, x_title="n", y_title=None, colors=[palette.a], series=["s"]),
        "histogram": histogram(bins, x_title="KL, nats", y_title="prompts", mean=2e-3, palette=palette),
    }


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["curve", "heatmap", "bars", "histogram"])
def test_specs_are_valid_and_can_be_drawn(name: str, palette: Palette) -> None:
    chart = every_chart(palette)[name]
    chart.altair().to_dict()  # raises on anything the Vega-Lite schema does not know
    svg = export.svg_bytes(chart, "A finding").decode()
    assert "A finding" in svg
    assert export.pdf_bytes(chart, "A finding").startswith(b"%PDF")
    assert export.png_bytes(chart, "A finding").startswith(b"\x89PNG")


def layers_with(chart: Chart, mark: str) -> list[dict[str, Any]]:
    return [part for part in chart.spec()["layer"] if part["mark"]["type"] == mark]


def test_texts_that_no_svg_can_have_are_drawn_as_replacements() -> None:
    """vl-convert ends the process at a control character, and a token may be one."""
    table = pl.DataFrame({"name": ["a\x1c", "b\ufffe"], "value": [1.0, 2.0], "series": ["s\x00", "s\x00"]})
    table = table.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    chart = interval_bars(table, x_title="x\x01", y_title="y", colors={"s\x00": "#444"}, palette=LIGHT)
    svg = export.svg_bytes(chart, "t\x02").decode()
    assert svg.count("\N{REPLACEMENT CHARACTER}") >= 4
    assert export.png_bytes(chart, "t\x02")


def test_a_curve_draws_every_series_null_reference_and_selected_layer() -> None:
    svg = export.svg_bytes(curve(), "t").decode()
    for color in (LIGHT.a, LIGHT.b, LIGHT.null):
        assert color in svg
    column = curve(selected=2).spec()["layer"][0]
    assert column["data"]["values"] == [{"x": 1.5, "x2": 2.5}]
    assert "chance" in svg


def test_axis_titles_survive_the_layers() -> None:
    """Vega-Lite joins the titles of all layers, and a layer without one takes the title away."""
    svg = export.svg_bytes(curve(), "t").decode()
    assert ">CKA<" in svg
    assert ">Block ℓ<" in svg
    drawn = export.svg_bytes(every_chart(LIGHT)["histogram"], "t").decode()
    assert ">KL, nats<" in drawn
    assert ">prompts<" in drawn


def test_clicking_selects_the_layer_of_the_column() -> None:
    spec = curve().spec()
    hits, (click,) = spec["layer"][-1], spec["params"]
    assert (click["name"], click["views"]) == ("pick", [hits["name"]])
    assert click["select"]["fields"] == ["layer"]
    assert [row["layer"] for row in hits["data"]["values"]] == [0, 1, 2]
    assert len(layers_with(curve(), "rect")) == 2  # the selected column and the click targets


def test_undefined_values_are_left_out_and_said_in_the_tooltip() -> None:
    rows = curve().spec()["layer"][-1]["data"]["values"]
    assert rows[2]["s1"] == "undefined"
    assert rows[1]["s0"] == "0.9  (0.85 to 0.95)"
    values = [row["value"] for row in layers_with(curve(), "line")[0]["data"]["values"]]
    assert values[-1] is None


def test_an_empty_curve_still_draws() -> None:
    empty = CURVE.clear()
    spec = layer_curve(empty, Look("CKA", {"one": LIGHT.a}), LIGHT)
    assert export.svg_bytes(spec, "nothing").startswith(b"<svg")


def test_text_and_marks_of_each_palette_contrast_with_their_page() -> None:
    """WCAG asks 3:1 for graphics: every mark colour against its page's background."""
    for palette, page in ((LIGHT, "#fcfcfb"), (DARK, "#14171a")):
        for color in (palette.a, palette.b, palette.pair, palette.pair2, palette.null, palette.mark):
            assert contrast(color, page) >= 3.0, (color, page)
        assert contrast(palette.mark, palette.scheme[0]) >= 7.0  # an outline and what parts it from its cell


def contrast(one: str, two: str) -> float:
    def luminance(text: str) -> float:
        parts = np.array([int(v, 16) for v in re.findall("[0-9a-f]{2}", text)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_tables_leave_as_the_same_table() -> None:
    import io

    table = CURVE.with_columns(tokens=pl.Series([["a", "b"]] * 6))
    assert pl.read_parquet(io.BytesIO(export.parquet_bytes(table))).equals(table, null_equal=True)
    back = pl.read_csv(io.BytesIO(export.csv_bytes(table)))
    assert back["tokens"][0] == '["a", "b"]'
    assert back["value"][:3].to_list() == [1.0, 0.9, 0.5]


def test_ten_is_not_written_as_a_power_of_ten() -> None:
    """d3 takes the digits of "~g" from the step between ticks: one digit for −10 beside −9."""
    rows = {"name": ["all"], "series": ["base"], "value": [-7.9], "low": [-9.9], "high": [-5.6], "n": [84]}
    look: dict[str, Any] = {"x_title": "nats", "colors": {"base": "#000"}, "palette": LIGHT}
    drawn = export.svg_bytes(interval_dots(pl.DataFrame(rows), limits=(-10.2, -5.0), **look), "t").decode()
    assert ">−10<" in drawn
    assert "e+" not in drawn
    steep = pl.DataFrame({"x": [1.0, 2.0], "series": ["a", "a"], "value": [200.0, 1.0]})
    look = {"x_title": "k", "y_title": "σ", "colors": {"a": "#000"}, "palette": LIGHT, "log_y": True}
    assert ">200<" in export.svg_bytes(numeric_lines(steep, **look), "t").decode()
    tiny = steep.with_columns(pl.col("value") * 1e-6)
    assert ">1e-6<" in export.svg_bytes(numeric_lines(tiny, **look), "t").decode()


def test_a_legend_takes_as_many_columns_as_its_names_have_room() -> None:
    names = ["mapped", "raw", "bogus", "shuffled", "random", "mean", "train"]
    rows = pl.DataFrame({"x": [1.0] * 7, "series": names, "value": [float(i) for i in range(7)]})
    colors = dict.fromkeys(names, "#000")
    spec = numeric_lines(rows, x_title="α", y_title="KL", colors=colors, palette=LIGHT)

    def lines_of_legend(width: int) -> int:
        drawn = vlc.vegalite_to_svg({**spec.spec(), "width": width})
        ends = re.finditer("role-legend-label", drawn)
        places = [re.findall(r'<g transform="translate\(\d+,(\d+)\)">', drawn[: e.start()])[-1] for e in ends]
        assert len(places) == len(names)
        return len(set(places))

    assert lines_of_legend(900) == 1
    assert lines_of_legend(220) == 4


def test_limits_hold_whatever_the_values() -> None:
    rows = pl.DataFrame({"x": [1.0, 2.0], "series": ["a", "a"], "value": [0.9998, 0.9999]})
    spec = numeric_lines(
        rows, x_title="x", y_title="p", colors={"a": "#000000"}, palette=LIGHT, limits=(0.0, 1.0)
    )
    assert '"domain": [0.0, 1.0]' in json.dumps(spec.spec())
