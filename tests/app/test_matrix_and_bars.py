"""The grid and the bars: valid specifications, drawn by a real renderer, showing what the table holds."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from app import export
from app.charts.bars import interval_bars
from app.charts.matrix import matrix
from app.charts.palette import DARK, LIGHT, Palette
from app.charts.spec import Spec, as_chart

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


def cells(palette: Palette = LIGHT, **more: Any) -> Spec:
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


def bars(palette: Palette = LIGHT) -> Spec:
    colors = {"carries": palette.b, "rest": palette.null}
    return interval_bars(
        BARS, x_title="Head", y_title="coverage, %", colors=colors, palette=palette, references={"ALL": 100.0}
    )


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
    as_chart(spec).to_dict()
    svg = export.svg_bytes(spec, "A finding").decode()
    for text in ("A finding", ">Block<", ">Head<", "coverage, %"):
        assert text in svg


def test_cells_without_a_value_are_frames_and_coloured_ones_are_not() -> None:
    full, blank = cells()["layer"]
    assert [(r["layer"], r["head"]) for r in full["data"]["values"]] == [(0, 0), (0, 1), (1, 1), (2, 1)]
    assert [(r["layer"], r["head"]) for r in blank["data"]["values"]] == [(1, 0), (2, 0)]
    assert blank["mark"]["fillOpacity"] == 0
    assert {row["said"] for row in blank["data"]["values"]} == {"no value"}


def test_a_diverging_scale_is_symmetric_and_neutral_at_zero() -> None:
    scale = cells(diverging=True)["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"] == [-4.0, 0.0, 4.0]
    assert scale["range"] == [LIGHT.a, LIGHT.scheme[0], LIGHT.b]
    plain = cells()["layer"][0]["encoding"]["color"]["scale"]
    assert (plain["domain"][0], plain["domain"][-1]) == (-2.0, 4.0)
    assert len(plain["domain"]) == len(plain["range"])


def test_only_a_grid_with_a_selection_takes_clicks() -> None:
    assert "params" not in cells()["layer"][0]
    chosen = cells(selected={"layer": 1})["layer"]
    assert chosen[0]["params"][0]["select"]["fields"] == ["layer", "head"]
    outline = chosen[-1]
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
    as_chart(spec).to_dict()
    svg = export.svg_bytes(spec, "A finding").decode()
    for text in ("A finding", ">Head<", "coverage, %", "ALL"):
        assert text in svg
    drawn, intervals = spec["layer"][:2]
    assert drawn["encoding"]["x"]["scale"]["domain"] == ["6", "2", "0"]
    assert [row["name"] for row in intervals["data"]["values"]] == ["6", "2"]
    assert drawn["encoding"]["y"]["scale"]["domain"][1] > 100
