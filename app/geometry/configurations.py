"""Every configuration counted: blocks × dimensions, of all heads together and of single heads."""

from __future__ import annotations

import numpy as np
import polars as pl

from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.words import label
from app.geometry import compared
from app.geometry.tables import Measured
from app.geometry.weights import model_of, place, what

LEVEL = 0.05
EVERY = "the leading k key-side directions, of all heads together or of one head"


def counts(table: pl.DataFrame) -> dict[str, tuple[int, int, int]]:
    """all heads, single heads -> configurations below the median, those with p < 0.05, and all of them."""
    every = pl.col("part") == "all heads"
    return {
        name: (int(mine["below"].sum()), int((mine["p_random"] < LEVEL).sum()), mine.height)
        for name, mine in (("all heads", table.filter(every)), ("single heads", table.filter(~every)))
    }


def drawn_range(blocks: dict[int, Measured]) -> tuple[int, int]:
    """Central 95 % of how many configurations of all heads lie below the median when a random subspace,
    nested in k, stands for Z at every block."""
    below = [one.separation.random < np.median(one.separation.random, axis=0) for one in blocks.values()]
    totals = np.sum([mine.sum(axis=1) for mine in below], axis=0)
    low, high = np.quantile(totals, [0.025, 0.975])
    return int(np.floor(low)), int(np.ceil(high))


def configurations_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """In how many configurations problems lie closer across languages than in random subspaces."""
    model = model_of(selection)
    asked = place(selection, pooling)
    call = Call(compared.configurations, opened.store, **asked)
    table = call.table
    shown = table.filter(pl.col("part") == "all heads").with_columns(
        (pl.col("value") / pl.col("random")).log(2).alias("drawn")
    )

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown,
            x="k",
            y="layer",
            value="drawn",
            x_title="Rank k of Z",
            y_title="Block ℓ",
            value_title="log₂ of ratio ÷ median of random subspaces",
            palette=palette,
            diverging=True,
            selected={"layer": selection.layer, "k": selection.k},
        )

    low, high = drawn_range(compared.every(opened.store, **asked))
    caption = (
        "A configuration is a block with a k, of all heads together or of one head alone. "
        f"{what(selection, EVERY)}"
        "Below the median: the ratio of distances is smaller than in half of the random subspaces of "
        "the same k, "
        f"as half of all random ones are: with one at every block, {low} to {high} configurations of "
        "all heads "
        "(central 95 %). Configurations share their problems, a larger k holds the smaller ones, and "
        "neighbouring "
        "blocks read alike subspaces: counts are no tests. Single heads are in the data."
    )
    title = configurations_title(f"{model}, {label(pooling)}", table)
    return Panel.of(call, f"z-configurations-{pooling}", title, draw, caption, (model,))


def configurations_title(where: str, table: pl.DataFrame) -> str:
    """Counts of configurations beside what chance gives on average."""
    told = [
        f"{name}: below the median of random subspaces in {below} of {of} configurations ({of / 2:g} "
        "by chance), "
        f"p < 0.05 in {small} ({LEVEL * of:.3g} by chance)"
        for name, (below, small, of) in counts(table).items()
    ]
    return f"{where}: {'; '.join(told)}"
