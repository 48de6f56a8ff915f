"""Every configuration counted: blocks × dimensions, of all heads together and of single heads."""

from __future__ import annotations

import numpy as np
import polars as pl

from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.words import label
from app.geometry import snippets
from app.geometry import tables as gq
from app.geometry.weights import model_of, what

LEVEL = 0.05
EVERY = "the leading k key-side directions, of all heads together or of one head"
SCHEMA = {
    "layer": pl.Int64,
    "part": pl.String,
    "k": pl.Int64,
    "value": pl.Float64,
    "random": pl.Float64,
    "p_random": pl.Float64,
    "below": pl.Boolean,
}


def rows(blocks: dict[int, gq.Measured]) -> pl.DataFrame:
    """One row per block, part ("all heads", "head 3") and k.

    value: ratio of distances; random: the median of random subspaces of the same k; p_random against these,
    one-sided; below: whether the ratio is below their median.
    """
    found = []
    for layer, one in blocks.items():
        whole = one.separation
        middle = np.median(whole.random, axis=0)
        parts = [("all heads", whole.inside.estimate, whole.p_random)]
        parts += [(f"head {i}", one.heads[i], one.p_heads[i]) for i in range(len(one.heads))]
        for part, ratio, p in parts:
            for at, k in enumerate(whole.ks):
                value, mid = float(ratio[at]), float(middle[at])
                found.append((layer, part, k, value, mid, float(p[at]), value < mid))
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


def counts(table: pl.DataFrame) -> dict[str, tuple[int, int, int]]:
    """all heads, single heads -> configurations below the median, those with p < 0.05, and all of them."""
    every = pl.col("part") == "all heads"
    return {
        name: (int(mine["below"].sum()), int((mine["p_random"] < LEVEL).sum()), mine.height)
        for name, mine in (("all heads", table.filter(every)), ("single heads", table.filter(~every)))
    }


def drawn_range(blocks: dict[int, gq.Measured]) -> tuple[int, int]:
    """Central 95 % of how many configurations of all heads lie below the median when a random subspace,
    nested in k, stands for Z at every block."""
    below = [one.separation.random < np.median(one.separation.random, axis=0) for one in blocks.values()]
    totals = np.sum([mine.sum(axis=1) for mine in below], axis=0)
    low, high = np.quantile(totals, [0.025, 0.975])
    return int(np.floor(low)), int(np.ceil(high))


def configurations_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """In how many configurations problems lie closer across languages than in random subspaces."""
    model = model_of(selection)
    blocks = {
        layer: gq.measured(opened, model, selection, layer, pooling) for layer in opened.store.layers(model)
    }
    table = rows(blocks)
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

    low, high = drawn_range(blocks)
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
    code = snippets.configurations(opened, model, selection, pooling)
    return Panel(f"z-configurations-{pooling}", title, table, draw, code, caption, (model,))


def configurations_title(where: str, table: pl.DataFrame) -> str:
    """Counts of configurations beside what chance gives on average."""
    told = [
        f"{name}: below the median of random subspaces in {below} of {of} configurations ({of / 2:g} "
        "by chance), "
        f"p < 0.05 in {small} ({LEVEL * of:.3g} by chance)"
        for name, (below, small, of) in counts(table).items()
    ]
    return f"{where}: {'; '.join(told)}"
