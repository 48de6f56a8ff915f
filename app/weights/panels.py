"""Panels of stored weight differences: blocks, tensors, spectra, heads. No Streamlit here."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.lines import numeric_lines
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.weights import tables as q
from app.weights import words as say
from app.weights.fields import WeightFields

MEASURES = {
    "relative": "norm ÷ the tensor's",
    "norm": "Frobenius norm",
    "effective_rank": "effective rank",
}
PARTS = {"o": "output (o)", "q": "query (q)", "k": "key (k)", "v": "value (v)"}
NOTHING = (
    "No weight differences are stored",
    "Differences are from the study's first model. This store has a single model, or was written by an "
    "earlier version: run precompute.py on the same study into a new folder.",
)


def model_of(opened: Opened, selection: Selection) -> str | None:
    """The difference looked at: a chosen contrast, else B's, else A's, else the first that there is."""
    if selection.delta in q.contrasts(opened):
        return selection.delta
    offered = q.differences(opened)
    return next((name for name in (selection.b, selection.a, *offered) if name in offered), None)


def part_of(opened: Opened, selection: Selection) -> str | None:
    """The tensor looked at in the selected block; None where no matrix of it differs."""
    own = WeightFields.of(selection)
    model = model_of(opened, selection)
    offered = () if model is None else q.parts_at(opened, model, selection.layer)
    if own.tensor in offered:
        return own.tensor
    preferred = [part for part in offered if part.endswith(("o_proj", "dense", "c_proj"))]
    return next(iter([*preferred, *offered]), None)


def panels(opened: Opened, selection: Selection) -> list[Panel]:
    """All panels of a selection; none where nothing is stored."""
    model, part = model_of(opened, selection), part_of(opened, selection)
    if model is None:
        return []
    made = [blocks_panel(opened, selection, model), grid_panel(opened, selection, model)]
    if part is not None:
        made.append(spectrum_panel(opened, selection, model, part))
    return [*made, heads_panel(opened, selection, model)]


def _code(opened: Opened, call: str) -> str:
    lines = (
        "from app.weights import tables as q",
        "from app.frame.opened import Opened, read_facts",
        "from store.reader import Store",
        "",
        f"store = Store({opened.path!r})",
        f"opened = Opened({opened.path!r}, store, read_facts(store))",
        f"table = {call}",
    )
    return "\n".join(lines)


def _models(opened: Opened, names: Iterable[str]) -> tuple[str, ...]:
    """The models that some differences are made of, the first one first."""
    ends = (end for name in names for end in q.ends(opened, name))
    return tuple(dict.fromkeys((opened.facts.models[0], *ends)))


def _colours(opened: Opened, model: str, palette: Palette) -> dict[str, str]:
    """The difference looked at has B's colour, all others further ones."""
    others = [name for name in q.differences(opened) if name != model]
    more = [palette.series[2 + i % 4] for i in range(len(others))]
    return {model: palette.b, **dict(zip(others, more, strict=True))}


def blocks_panel(opened: Opened, selection: Selection, model: str) -> Panel:
    """Relative size of every block's difference, all models and contrasts side by side."""
    first = opened.facts.models[0]
    models = (*(name for name in q.differences(opened) if name != model), model)  # the last is drawn on top
    table = q.by_block(opened, models)

    def draw(palette: Palette) -> Chart:
        look = Look(
            y_title="‖ΔW‖ ÷ ‖W‖ of the block",
            colors=_colours(opened, model, palette),
            selected=selection.layer,
            height=280,
        )
        return layer_curve(table, look, palette)

    caption = (
        f"Frobenius norm of each difference over all tensors of a block, relative to that of {first}'s "
        "weights, of tensors that both models have in one shape; none, no point. Null: 0, and 0 means equal "
        "bit by bit; nothing is estimated, so there is no interval. Click a block to select it."
    )
    named = [f"{q.label(opened, name)}." for name in models if name in q.contrasts(opened)]
    title = say.blocks_title(table, model, *q.ends(opened, model))
    code = _code(opened, f"q.by_block(opened, {models!r})")
    caption = " ".join([*named, caption])
    return Panel("weight-blocks", title, table, draw, code, caption, _models(opened, models))


def grid_panel(opened: Opened, selection: Selection, model: str) -> Panel:
    """One measure of every tensor, part × block."""
    measure = WeightFields.of(selection).weights
    table = q.grid(opened, model, measure)

    def draw(palette: Palette) -> Chart:
        return matrix(
            table,
            x="layer",
            y="part",
            value="value",
            x_title="Block ℓ",
            y_title="tensor",
            value_title=MEASURES[measure],
            palette=palette,
            selected={"layer": selection.layer},
            labels=table.height <= 100,
        )

    meaning = {
        "relative": f"‖ΔW‖_F ÷ ‖W‖_F of {opened.facts.models[0]}'s tensor.",
        "norm": "‖ΔW‖_F of the tensor.",
        "effective_rank": "exp of the entropy of σ/Σσ of the difference; vectors have none.",
    }[measure]
    lost = q.problems(opened, model)
    more = f" Not compared: {'; '.join(lost[:4])}{' …' if len(lost) > 4 else ''}." if lost else ""
    some = q.part_rows(opened, model)
    more += f" Of other vocabularies the rows of shared token strings: {'; '.join(some)}." if some else ""
    caption = (
        f"{q.label(opened, model)}. {meaning} Null: 0 where both models are equal bit by bit, empty where "
        f"they can't be compared. Tensors outside the blocks are in the table of the store alone.{more} "
        f"Click a cell to select its block. {say.rounding(q.tensors(opened, model))}"
    ).rstrip()
    title = say.grid_title(q.tensors(opened, model), *q.ends(opened, model))
    code = _code(opened, f"q.grid(opened, {model!r}, {measure!r})")
    return Panel("weight-tensors", title, table, draw, code, caption, _models(opened, [model]))


def spectrum_panel(opened: Opened, selection: Selection, model: str, part: str) -> Panel:
    """Singular values of one tensor's difference in every model, and of a random one of the same norm."""
    models, layer = q.differences(opened), selection.layer
    table = q.spectra(opened, models, layer, part)
    chance = f"random, {model}'s norm"
    lines = pl.concat(
        [
            table.select("x", "series", "value").drop_nulls(),
            table.filter(pl.col("series") == model).select(
                "x", pl.lit(chance).alias("series"), pl.col("random").alias("value")
            ),
        ]
    )
    lines = lines.filter(pl.col("value") > 1e-9 * pl.col("value").max())

    def draw(palette: Palette) -> Chart:
        hues = _colours(opened, model, palette)
        shown = {name: hue for name, hue in hues.items() if name in set(lines["series"])}
        return numeric_lines(
            lines,
            x_title="direction",
            y_title="singular value σ",
            colors={**shown, chance: palette.null},
            palette=palette,
            log_y=True,
        )

    caption = (
        f"Singular values of {'; '.join(q.label(opened, name) for name in models)}; at most "
        f"{q.SHOWN_DIRECTIONS}. Null: a random matrix of the same shape and norm (Marchenko-Pastur); a "
        "direction stands out above the 99 % quantile of the largest singular value of one whose rows and "
        "columns have the norms that the difference's have. Values of low-rank differences end at their rank."
    )
    found = q.standing_out(opened, model, layer, part)
    title = say.spectrum_title(found, model, layer, part)
    code = _code(opened, f"q.spectra(opened, {models!r}, {layer}, {part!r})")
    return Panel("weight-spectrum", title, table, draw, code, caption, _models(opened, models), False)


def heads_panel(opened: Opened, selection: Selection, model: str) -> Panel:
    """Share of every head in the difference of one kind of projection, layer × head."""
    part = WeightFields.of(selection).head_part
    table = q.heads(opened, model, part)
    shown = (
        q.blocks(opened, model)
        .join(table.select("head").unique(), how="cross")
        .join(table, on=["layer", "head"], how="left")
    )

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown,
            x="layer",
            y="head",
            value="share",
            x_title="Block ℓ",
            y_title="key/value head" if part in "kv" else "head",
            value_title="share of ‖ΔW‖²",
            palette=palette,
            selected={"layer": selection.layer},
            labels=table.height <= 100,
            format=".2f",
        )

    at = table.filter(pl.col("layer") == selection.layer)
    low, high = (at[0, "low"], at[0, "high"]) if at.height else (None, None)
    there = "" if low is None else f" In block {selection.layer}: {low:.2f} to {high:.2f}."
    caption = (
        "Share of a head's columns (output) or rows (query, key, value) in the squared difference of its "
        "projection; empty where both models are equal or can't be compared. Null: the difference's "
        f"directions turned at random, its singular values kept (95 % range).{there} p by a Beta with the "
        "exact two moments, after Holm over heads and blocks."
    )
    title = say.heads_title(table, model, part, selection.layer, q.heads_told(opened, model))
    code = _code(opened, f"q.heads(opened, {model!r}, {part!r})")
    return Panel("weight-heads", title, table, draw, code, caption, _models(opened, [model]))
