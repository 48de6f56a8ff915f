"""Positive values over layers on a logarithmic axis, each with the most it could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from app.charts.log_points import log_domain
from app.charts.palette import Palette
from app.charts.spec import Series, across, hue, log_format, log_ticks, pick, tip
from app.charts.template import Chart, Rows, hole, layer, layered, look_of, rows, template, text_hole


def ratio_profile(
    table: pl.DataFrame,
    *,
    y_title: str,
    colors: Mapping[str, str],
    palette: Palette,
    marked: Sequence[int] = (),
    x_title: str = "Block ℓ",
    height: int = 320,
) -> Chart:
    """One line per series over layers and, dashed, the largest possible value; a line at chance, 1.

    Args:
        table: columns layer, series, value, most; values that are not positive are not drawn.
        colors: a colour for each series, in legend order.
        marked: layers with a shade behind them.
    """
    layers = table["layer"].unique().sort().to_list() or [0]
    found = [*table["value"].drop_nulls().to_list(), *table["most"].drop_nulls().to_list()]
    domain = log_domain(found, least=1e-2)
    step = max(1, (len(layers) + 11) // 12)
    known = table.filter(pl.col("value").is_finite() & (pl.col("value") > 0))
    limit = table.filter(pl.col("most").is_finite() & (pl.col("most") > 0))
    data: dict[str, Rows] = {
        "marked": [{"layer": at - 0.5, "end": at + 0.5} for at in marked],
        "line": [{"value": 1.0, "label": "chance"}],
        "limit": rows(limit),
        "known": rows(known.with_columns(pl.col("value").clip(*domain))),
        "hits": _hits(table, list(colors)),
    }
    holes = {
        "layers": [layers[0] - 0.5, layers[-1] + 0.5],
        "ticks": layers[::step],
        "ends": list(domain),
        "written": log_ticks(*domain),
        "digits": log_format(*domain),
    }
    return Chart(_profile(x_title, y_title, look_of(colors), palette), data, holes, height)


@template
def _profile(x_title: str, y_title: str, series: Series, palette: Palette) -> alt.LayerChart:
    def x(field: str = "layer") -> alt.X:
        axis = alt.Axis(values=hole("ticks"), grid=False, format="d", labelOverlap=True)
        scale = alt.Scale(domain=hole("layers"), nice=False)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=axis)

    def y(field: str = "value") -> alt.Y:
        axis = alt.Axis(values=hole("written"), format=text_hole("digits"))
        scale = alt.Scale(type="log", domain=hole("ends"), nice=False)
        return alt.Y(f"{field}:Q", title=y_title, scale=scale, axis=axis)

    color = hue(series)
    most = {"x": x(), "y": y("most"), "color": color}
    value = {"x": x(), "y": y(), "color": color}
    tips = [tip("layer", "quantitative", x_title)]
    tips += [tip(f"s{number}", "nominal", name) for number, (name, _) in enumerate(series)]
    shade = layer("marked").mark_rect(color=palette.mark, opacity=0.08)
    dashed = layer("limit").mark_line(strokeDash=[3, 3], strokeWidth=1.3, opacity=0.9)
    ends = layer("limit").mark_point(shape="triangle-down", filled=True, size=22, opacity=0.9)
    dots = layer("known").mark_point(filled=True, size=40, opacity=1)
    hits = layer("hits", "hits").mark_rect(opacity=0, cursor="pointer").add_params(pick("layer"))
    return layered(
        shade.encode(x=x(), x2=alt.X2("end")),
        *across("line", y(), palette),
        dashed.encode(**most),
        ends.encode(**most),
        layer("known").mark_line(strokeWidth=2).encode(**value),
        dots.encode(**value),
        hits.encode(x=x("x"), x2=alt.X2("x2"), tooltip=tips),
    )


def _hits(table: pl.DataFrame, series: Sequence[str]) -> Rows:
    """Columns that take clicks and tell every series in one tooltip."""
    found: dict[int, dict[str, object]] = {}
    for row in table.iter_rows(named=True):
        at = row["layer"]
        entry = found.setdefault(at, {"layer": at, "x": at - 0.5, "x2": at + 0.5})
        key = f"s{series.index(row['series'])}"
        there = row["value"] is not None and row["value"] == row["value"]
        entry[key] = f"{row['value']:.4g} of at most {row['most']:.4g}" if there else "no value"
    return list(found.values())
