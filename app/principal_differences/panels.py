"""Panels of principal differences: the components of a place, all places, and one component closely."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from app.charts.lines import numeric_lines, value_dots
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.signed_bars import signed_bars
from app.charts.template import Chart
from app.difference_lens.words import counted
from app.frame import prompts as queries
from app.frame.analysis import Make
from app.frame.call import Call, Progress, quiet
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.words import label, number
from app.principal_differences import slices, tables, words, written
from app.principal_differences.fields import SHOWN, PrincipalFields

__all__ = ["SITES", "at_place", "leading", "makers", "place", "scanned"]

SITES = slices.SITES
ENDS, TOKENS, MATRICES = 6, 8, 16
"""Prompts and tokens at either end; matrices that are shown."""


def scanned(selection: Selection) -> dict[str, Any]:
    """What every place is asked by."""
    own = PrincipalFields.of(selection)
    site = selection.site if selection.site in SITES else SITES[0]
    which = (selection.language, selection.category)
    how = {"centred": own.about == "mean", "every": own.compared_every}
    return {"a": selection.a, "b": selection.b, "site": site, "which": which} | how


def place(opened: Opened, selection: Selection) -> dict[str, Any]:
    """What a component's tables are asked by: the selected place, at the nearest block that is compared."""
    asked = scanned(selection)
    asked.pop("every")
    return asked | {"layer": at_place(opened, selection)["layer"], "position": selection.position}


def at_place(opened: Opened, selection: Selection, progress: Progress = quiet) -> dict[str, Any]:
    """The selected place's row of the scan, which is made where it isn't known."""
    asked = scanned(selection)
    tables.scan(opened.store, **asked, progress=progress)
    return tables.place_of(opened.store, asked, selection.layer, selection.position)


def leading(opened: Opened, selection: Selection) -> int:
    """The selected component, or the last that there is; 0 where the differences have none."""
    if at_place(opened, selection)["state"] != "read":
        return 0
    count = len(tables.found(opened.store, **place(opened, selection)).directions)
    return min(PrincipalFields.of(selection).component, count)


def makers(opened: Opened, selection: Selection) -> list[Make]:
    """The components of the place, all places; where there are any, the chosen one's prompts, tokens, ΔW."""
    made: list[Make] = [lambda: components_panel(opened, selection), lambda: map_panel(opened, selection)]
    if leading(opened, selection):
        made += [
            lambda: prompts_panel(opened, selection),
            lambda: tokens_panel(opened, selection),
            lambda: written_panel(opened, selection),
        ]
    return made


def _unit(opened: Opened, selection: Selection) -> str:
    return queries.unit_said(opened.store, ("train", selection.language, selection.category))


def components_panel(opened: Opened, selection: Selection) -> Panel:
    """Shares of the components of the selected place, on train and on validation prompts."""
    asked, at = place(opened, selection), at_place(opened, selection)
    models, unit = (selection.a, selection.b), _unit(opened, selection)
    every = PrincipalFields.of(selection).compared_every
    if not leading(opened, selection):
        call = Call(tables.scan, opened.store, **scanned(selection))
        return _none(call, words.components_title(models, at, pl.DataFrame(), unit), at, models)
    call = Call(tables.components, opened.store, **asked, every=every)
    table = call.table
    names = {"train": "train", "validation": "validation", "states": f"states of {selection.a}"}
    drawn = pl.concat(
        table.select(
            x="component",
            series=pl.lit(name),
            value=column,
            low="low" if column == "validation" else pl.lit(None, pl.Float64),
            high="high" if column == "validation" else pl.lit(None, pl.Float64),
        )
        for column, name in names.items()
    ).drop_nulls("value")
    null = table.select(x="component", low=pl.lit(0.0), high="limit") if at["limit"] else None
    chosen = leading(opened, selection)

    def draw(palette: Palette) -> Chart:
        hues = dict(zip(names.values(), (palette.series[2], palette.pair, palette.null), strict=True))
        return numeric_lines(
            drawn,
            x_title="component",
            y_title="share of the mean square",
            colors=hues,
            palette=palette,
            x_format="d",
            marks={"shown below": chosen} if len(table) > 1 else None,
            null=null,
        )

    title = words.components_title(models, at, table, unit)
    caption = _caption(opened, selection, at, table.row(chosen - 1, named=True))
    return Panel.of(call, "principal-components", title, draw, caption, models, False)


def _none(call: Call, title: str, at: dict[str, Any], models: tuple[str, str]) -> Panel:
    """A place of which nothing can be told: what its differences are, beside rounding."""
    shown = pl.DataFrame(
        {
            "name": ["mean square of the differences", "what it must exceed"],
            "value": [at["whole"], at["noise"]],
            "low": None,
            "high": None,
            "series": "mean square",
        },
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )

    def draw(palette: Palette) -> Chart:
        return signed_bars(
            shown,
            x_title="mean square",
            name_title="what",
            colors={"mean square": palette.pair},
            palette=palette,
        )

    caption = "Mean square of B − A over the train prompts, beside twice what rounding of both models gives."
    return Panel.of(call, "principal-components", title, draw, caption, models, False)


def _caption(opened: Opened, selection: Selection, at: dict[str, Any], row: dict[str, Any]) -> str:
    """What is compared with what; what the mean takes; how far the chosen component is found again."""
    a, b = selection.a, selection.b
    own = PrincipalFields.of(selection)
    about = "their mean is taken off" if own.about == "mean" else "not centred"
    measured = all(opened.store.rounding(model) for model in (a, b))
    noise = "" if measured else " (the models' own was not measured, that of storing is)"
    line = f"A line for the components of {a}'s own states, whose shares random weights would pass on"
    return (
        f"{b} − {a}, {at['prompts']} train prompts ({counted(at['units'], _unit(opened, selection))}), "
        f"{about}; band: held-out prompts, 95 %. Grey: what the first one not counted does not exceed, "
        f"the largest of unstructured differences of the same sizes, {tables.DRAWS} draws, 5 % for "
        f"all places at once, or twice the rounding{noise}. The mean takes {100 * at['mean_share']:.0f} % "
        f"of the mean square. Component {row['component']} has cosine {number(row['mean_cosine'])} with it; "
        f"resamples find it at cosine {number(row['again'])} (lowest tenth {number(row['again_low'])}). "
        f"{line}: a comparison, no test."
    )


def map_panel(opened: Opened, selection: Selection) -> Panel:
    """How many components exceed unstructured differences, block by position."""
    call = Call(tables.scan, opened.store, **scanned(selection))
    at = at_place(opened, selection)
    percent = [None if v is None else f"{100 * v:.0f} %" for v in call.table["first"]]
    mean = [None if v is None else f"{100 * v:.0f} %" for v in call.table["mean_share"]]
    cells = call.table.select(
        "position",
        "layer",
        count=pl.col("count").cast(pl.Float64),
        said=pl.col("state").replace(SAID),
        first=pl.Series(percent, dtype=pl.String).fill_null("–"),
        mean=pl.Series(mean, dtype=pl.String).fill_null("–"),
    )

    def draw(palette: Palette) -> Chart:
        return matrix(
            cells,
            x="position",
            y="layer",
            value="count",
            x_title="position",
            y_title="Block ℓ",
            value_title="components",
            palette=palette,
            selected={"position": at["position"], "layer": at["layer"]},
            labels=True,
            format=",.0f",
            told={"said": "models", "first": "first component", "mean": "the mean takes"},
        )

    caption = (
        f"Components at {label(scanned(selection)['site'])} beyond unstructured differences, at most "
        f"{SHOWN}. Empty: equal in both models, no more than rounding apart, or too few different prompts. A "
        "click shows a block's components."
    )
    models = (selection.a, selection.b)
    title = words.map_title(models, call.table, _unit(opened, selection))
    return Panel.of(call, "principal-map", title, draw, caption, models)


SAID = {
    "read": "differ",
    "equal": "are equal",
    "rounding": "differ by no more than rounding",
    "alike": "of prompts that are the same so far",
}


def _told(opened: Opened, selection: Selection) -> bool:
    return leading(opened, selection) <= (at_place(opened, selection)["count"] or 0)


def prompts_panel(opened: Opened, selection: Selection) -> Panel:
    """The prompts at both ends of the chosen component."""
    chosen = leading(opened, selection)
    call = Call(tables.prompts, opened.store, **place(opened, selection), component=chosen, ends=ENDS)
    ids = call.table["id"].to_list()
    names = [
        f"{name} #{row}" if ids.count(name) > 1 else name
        for name, row in zip(ids, call.table["prompt"], strict=True)
    ]
    drawn = call.table.select(
        name=pl.Series(names, dtype=pl.String),
        value="score",
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
        series="split",
    )

    def draw(palette: Palette) -> Chart:
        hues = {"train": palette.series[2], "validation": palette.pair}
        return signed_bars(
            drawn,
            x_title=f"score along component {chosen}",
            name_title="prompt",
            colors=hues,
            palette=palette,
        )

    caption = (
        f"How far {selection.b} − {selection.a} lies along the component, in root mean squares of the train "
        "prompts; up is the side of the mean difference. A description of these prompts, no test."
    )
    title = words.prompts_title(chosen, call.table)
    return Panel.of(call, "principal-prompts", title, draw, caption, (selection.a, selection.b), False)


def tokens_panel(opened: Opened, selection: Selection) -> Panel | None:
    """The tokens that the chosen component promotes and suppresses; None without a stored unembedding."""
    through = selection.a if PrincipalFields.of(selection).through == "a" else selection.b
    if not tables.readable(opened.store, through):
        return None
    chosen = leading(opened, selection)
    asked = place(opened, selection) | {"component": chosen, "through": through, "ends": TOKENS}
    call = Call(tables.tokens, opened.store, **asked)
    table = call.table
    kind = pl.when("beyond").then("side").otherwise(pl.lit(CHANCE))
    drawn = table.select(
        name=pl.Series(words.names_of(table), dtype=pl.String),
        value="value",
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
        series=kind,
    )

    def draw(palette: Palette) -> Chart:
        hues = {"promoted": palette.b, "suppressed": palette.a, CHANCE: palette.null}
        return signed_bars(
            drawn,
            x_title="change of the logit by one root mean square",
            name_title="token",
            colors={name: hue for name, hue in hues.items() if name in set(drawn["series"])},
            palette=palette,
            reach=float(table["reach"][0]),
        )

    lost = int(table["text"].null_count())
    unknown = (
        f" {lost} tokens have only their numbers: the store knows the texts of its prompts' tokens."
        if lost
        else ""
    )
    caption = (
        f"The component times the final norm's gain through {through}'s unembedding, from the mean of all "
        f"tokens, the norm's length held. Dashed: what 95 % of unrelated directions reach at most.{unknown}"
    )
    title = words.tokens_title(chosen, _told(opened, selection), table)
    return Panel.of(call, "principal-tokens", title, draw, caption, (selection.a, selection.b), False)


CHANCE = "within chance"


def written_panel(opened: Opened, selection: Selection) -> Panel | None:
    """The chosen component's cosine with what ΔW writes, matrix by matrix; None without a stored ΔW."""
    if written.difference(opened.store, selection.a, selection.b) is None:
        return None
    chosen = leading(opened, selection)
    call = Call(written.written, opened.store, **place(opened, selection), component=chosen)
    table = call.table
    if table.is_empty():
        return None
    shown = table.head(MATRICES).select(
        name=pl.format("{} of block {}", "part", "layer"),
        value="cosine",
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
        null_low=pl.lit(0.0),
        null_high="null_high",
        short=pl.col("cosine").map_elements(number, return_dtype=pl.String),
    )

    def draw(palette: Palette) -> Chart:
        return value_dots(shown, x_title="cosine with ΔW's output side", palette=palette, limits=(0.0, 1.02))

    ranks = np.unique(table["rank"].to_numpy())
    told = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    caption = (
        f"Length of the component's part in the left singular space ({told} directions) of each writing "
        "matrix's ΔW up to this block. Grey: 95 % of unrelated subspaces, uniformly random or with "
        f"the same share of every coordinate. p_holm over {table.height} matrices in the data."
    )
    title = words.written_title(chosen, _told(opened, selection), table)
    return Panel.of(call, "principal-written", title, draw, caption, (selection.a, selection.b), False)
