"""Panels about the prompts: whether Z separates, and how much of the language shift lies in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.lines import numeric_lines, value_dots
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.words import label, number
from app.geometry import compared, words
from app.geometry import tables as gq
from app.geometry.configurations import configurations_panel
from app.geometry.weights import model_of, place, what

BOTH = (
    "The words also ask it of subspaces with Z's own share of every coordinate (p_scales), so that a few "
    "large coordinates are no finding. "
)
LOOKED = "k and block were set by hand; p is not adjusted for having looked at several. "


def _colors(palette: Palette) -> dict[str, str]:
    return {"Z": palette.pair, "outside Z": palette.series[5], "whole space": palette.mark}


def _banded(table: pl.DataFrame) -> pl.DataFrame:
    """The table with bands of Z alone: those of its complement and of the whole space nearly coincide."""
    mine = pl.col("series") == "Z"
    return table.with_columns(pl.when(mine).then(pl.col(c)).otherwise(None) for c in ("low", "high"))


def _where(opened: Opened, selection: Selection, pooling: str) -> str:
    return f"{model_of(selection)}, block {selection.layer}, {label(pooling)}"


def _problems(opened: Opened, selection: Selection) -> str:
    names = gq.languages(opened.store) or ("", "")
    count = gq.problem_count(opened.store, selection.split, selection.category)
    return f"{count} in {names[0]} and {names[1]}, {selection.site}. "


def separation_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """Ratios in Z, outside it and in the whole space over k, with random subspaces."""
    model = model_of(selection)
    asked = place(selection, pooling) | {"layer": selection.layer}
    found = gq.measured(opened.store, **asked).separation
    call = Call(compared.separation, opened.store, **asked)
    low, middle, high = np.quantile(found.random, [0.05, 0.5, 0.95], axis=0)
    null = pl.DataFrame({"x": found.ks, "low": low, "high": high})

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            _banded(call.table),
            x_title="Rank k of Z",
            y_title="ratio of distances",
            colors=_colors(palette),
            palette=palette,
            log_x=max(found.ks) > 16,
            marks={f"k = {selection.k}": selection.k},
            null=null,
        )

    at = found.ks.index(selection.k)
    caption = (
        _problems(opened, selection)
        + "Mean distance between the two languages of one problem, over the mean "
        "distance of different problems in one language: small where the problem counts and the language "
        f"does not. Band: bootstrap over problems, 95 %. Grey: 90 % of {len(found.random)} random subspaces "
        f"of the same k (median here {number(float(middle[at]))}). Wrong pairing of the problems: "
        f"{words.p_text(float(found.p_pairing[at]))} here. "
        + BOTH
        + LOOKED
        + "p_random, p_scales and p_pairing are in the data."
    )
    title = words.separation_title(_where(opened, selection, pooling), found, selection.k)
    return Panel.of(call, f"z-separation-{pooling}", title, draw, caption, (model,), clickable=False)


def energy_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """Share of the language shift in Z over chance, over k, with random subspaces."""
    model = model_of(selection)
    asked = place(selection, pooling) | {"layer": selection.layer}
    found = gq.measured(opened.store, **asked).energy
    call = Call(compared.energy, opened.store, **asked)
    null = pl.DataFrame({"x": found.ks, "low": found.low, "high": found.high})

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            call.table,
            x_title="Rank k of Z",
            y_title="language shift in Z ÷ (k/d)",
            colors={"Z": palette.pair},
            palette=palette,
            log_x=max(found.ks) > 16,
            marks={f"k = {selection.k}": selection.k},
            null=null,
        )

    names = gq.languages(opened.store) or ("", "")
    caption = (
        _problems(opened, selection) + f"Mean share of ‖{names[1]} − {names[0]}‖² inside Z, over k/d. Band: "
        "bootstrap over problems, 95 %; it says nothing of other subspaces. Grey: 95 % of random subspaces "
        "(exact moments, Beta), wide where all problems shift alike. " + BOTH + LOOKED
    )
    title = words.energy_title(_where(opened, selection, pooling), found, selection.k, names)
    return Panel.of(call, f"z-energy-{pooling}", title, draw, caption, (model,), clickable=False)


def heads_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """Ratio of every head's own k directions, beside all heads together and random subspaces."""
    model = model_of(selection)
    asked = place(selection, pooling) | {"layer": selection.layer}
    found = gq.measured(opened.store, **asked)
    call = Call(compared.heads, opened.store, **asked, k=selection.k)
    at = found.separation.ks.index(selection.k)
    multi, middle = call.table["value"][0], np.median(found.separation.random[:, at])

    def draw(palette: Palette) -> Chart:
        ends = pl.max_horizontal(pl.col("value", "high", "null_high").fill_nan(None))
        most = 1.05 * float(call.table.select(ends.max()).item() or 1.0)
        dots = call.table.with_columns(short=pl.col("value").round(2).cast(pl.String))
        return value_dots(
            dots, x_title="ratio of distances in its own k directions", palette=palette, limits=(0.0, most)
        )

    caption = (
        _problems(opened, selection)
        + f"The leading {selection.k} key-side directions of each head's own kernel; "
        f"all heads: Z. Grey: 90 % of random subspaces (median {number(float(middle))}). Heads that share a "
        "key head read one span, so they are not independent. " + LOOKED
    )
    title = words.heads_title(_where(opened, selection, pooling), found.p_heads[:, at], multi, selection.k)
    return Panel.of(call, f"z-heads-{pooling}", title, draw, caption, (model,), clickable=False)


def every_separation_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """Ratios of every block at the selected k."""
    model = model_of(selection)
    asked = place(selection, pooling)
    call = Call(compared.every_separation, opened.store, **asked, k=selection.k)
    blocks = compared.every(opened.store, **asked)
    layers, found = list(blocks), [one.separation for one in blocks.values()]
    at = found[0].ks.index(selection.k)
    low, high = np.transpose([np.quantile(one.random[:, at], [0.05, 0.95]) for one in found])
    band = pl.DataFrame({"layer": layers, "low": low, "high": high})

    def draw(palette: Palette) -> Chart:
        look = Look("ratio of distances", _colors(palette), selected=selection.layer)
        return layer_curve(_banded(call.table), look, palette, band)

    said = [layer for layer, one in zip(layers, found, strict=True) if one.separates[at]]
    caption = (
        _problems(opened, selection) + what(selection) + "Band: bootstrap over problems, 95 %. Grey: 90 % of "
        f"{len(found[0].random)} random subspaces of the same k. {BOTH}p of the single blocks, in the data, "
        "is not adjusted for their number. A click selects the block."
    )
    title = words.every_title(f"{model}, {label(pooling)}", said, len(layers), selection.k)
    return Panel.of(call, f"z-every-separation-{pooling}", title, draw, caption, (model,))


def every_energy_panel(opened: Opened, selection: Selection, pooling: str) -> Panel:
    """Language energy of every block at the selected k."""
    model = model_of(selection)
    asked = place(selection, pooling)
    call = Call(compared.every_energy, opened.store, **asked, k=selection.k)
    blocks = compared.every(opened.store, **asked)
    layers, found = list(blocks), [one.energy for one in blocks.values()]
    at = found[0].ks.index(selection.k)
    null = pl.DataFrame(
        {
            "layer": layers,
            "low": [float(e.low[at]) for e in found],
            "high": [float(e.high[at]) for e in found],
        }
    )

    def draw(palette: Palette) -> Chart:
        look = Look(
            "language shift in Z ÷ (k/d)",
            {"Z": palette.pair},
            references={"chance": 1.0},
            selected=selection.layer,
        )
        return layer_curve(call.table, look, palette, null)

    p, p_low = (np.array([getattr(e, name)[at] for e in found]) for name in ("more", "less"))
    values = call.table["value"].to_numpy()
    caption = (
        _problems(opened, selection) + what(selection) + "Band: bootstrap over problems, 95 %. Grey: 95 % of "
        f"random subspaces (exact moments, Beta). {BOTH}Named blocks: Holm over blocks, 2.5 % on each side."
    )
    title = words.energy_every_title(f"{model}, {label(pooling)}", values, p, p_low, layers)
    return Panel.of(call, f"z-every-energy-{pooling}", title, draw, caption, (model,))


Make = Callable[[Opened, Selection, str], Panel]


def makers(selection: Selection) -> tuple[Make, ...]:
    """Panels for each pooling: over blocks too when every block is measured."""
    every: tuple[Make, ...] = (every_separation_panel, every_energy_panel, configurations_panel)
    one: tuple[Make, ...] = (separation_panel, heads_panel, energy_panel)
    return every + one if selection.layers == "every" else one
