"""The logit lens as a chart: states by tokens, coloured by probability, the likeliest token in each cell."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from app.charts.palette import Palette
from app.charts.spec import angle_of, tip
from app.charts.template import Chart, hole, layer, layered, rows, template, text_hole

__all__ = ["lens_chart"]

LETTER, LINE = 6.2, 13


def lens_chart(table: pl.DataFrame, palette: Palette) -> Chart:
    """One cell for each state and token; what is said stands in it where it has room.

    Args:
        table: columns place (the prompt's token, in order), state, said (the likeliest next token) and p.
    """
    columns = table["place"].unique(maintain_order=True).to_list()
    states = table["state"].unique().sort(descending=True).to_list()
    height = min(250 + (LINE + 2) * len(states), 700)
    wide = f"width / {len(columns)} >= {LETTER} * length(datum.said) + 2"
    holes: dict[str, Any] = {"columns": columns, "states": states, "angle": angle_of(columns)}
    holes["fits"] = f"{wide} && height / {len(states)} >= {LINE - 2}"
    return Chart(_lens(palette), {"cells": rows(table)}, holes, height)


@template
def _lens(palette: Palette) -> alt.LayerChart:
    axis = alt.Axis(labelOverlap=True, labelSeparation=4, labelAngle=hole("angle"), ticks=False, domain=False)
    up = alt.Axis(labelOverlap=True, labelSeparation=4, ticks=False, domain=False)
    place = {
        "x": alt.X(
            "place:N",
            title="token of the prompt",
            sort=None,
            axis=axis,
            scale=alt.Scale(domain=hole("columns")),
        ),
        "y": alt.Y("state:O", title="state", sort=None, axis=up, scale=alt.Scale(domain=hole("states"))),
    }
    scale = alt.Scale(domain=[0, 1], range=list(palette.scheme), interpolate="rgb", clamp=True)
    color = alt.Color("p:Q", title="probability", scale=scale, legend=alt.Legend(orient="top", format=".1f"))
    tips = [
        tip("place", "nominal", "behind"),
        tip("state", "ordinal", "state"),
        tip("said", "nominal", "likeliest next"),
        tip("p", "quantitative", "its probability", format=".3f"),
        tip("p_final", "quantitative", "of the final one", format=".3f"),
    ]
    cells = layer("cells", "cells").mark_rect().encode(**place, color=color, tooltip=tips)
    near, far = alt.value(palette.text), alt.value(palette.scheme[0])
    shade = alt.when("datum.p > 0.5").then(far).otherwise(near)
    fits = alt.when(text_hole("fits")).then(alt.value(1)).otherwise(alt.value(0))
    said = {"text": alt.Text("said:N"), "color": shade, "opacity": fits, "tooltip": tips}
    return layered(cells, layer("cells", "words").mark_text(fontSize=10).encode(**place, **said))
