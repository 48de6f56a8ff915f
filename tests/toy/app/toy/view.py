"""The experiment of a selection and back, its controls and its panels."""

import polars as pl

from app.charts.lines import numeric_lines
from app.frame import controls
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.toy.fields import ToyFields
from app.toy.words import toy_title
from engine.toy.spec import Toy


def asked(_opened, selection):
    return Toy(model=selection.a, layer=selection.layer, grain=ToyFields.of(selection).grain)


def selection_of(condition, _selection):
    return {"a": condition["model"], "layer": condition["layer"], "grain": condition["grain"]}


def settings(_opened):
    controls.slide("layer", "Block ℓ")
    controls.slide("grain", "Every prompt of")


def panels(opened, result, _selection):
    def draw(palette):
        drawn = result.table.select(x="prompt", series=pl.lit("distance"), value="distance")
        return numeric_lines(
            drawn, x_title="prompt", y_title="distance", colors={"distance": palette.a}, palette=palette
        )

    code, models = read_run(opened, result, "table = run.table"), (result.condition["model"],)
    return [
        Panel("toy", toy_title(result.summary["mean"]), result.table, draw, code, "No null.", models, False)
    ]
