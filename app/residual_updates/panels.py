"""Residual-update panels: R of every block against a subspace Z, by language, and split into its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import store_rounding, words
from app.frame.call import Call, Progress
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.prompts import chosen_filter, unit_said
from app.frame.selection import Selection
from app.residual_updates import tables
from engine.residual_updates.numbers import ROUNDED, ResidualUpdates, chance_ratio, update_label

WHY_EMPTY = (
    "This store has no residual updates",
    "R(ℓ) needs the residual stream and the head kernels of the models. Capture `resid` and run "
    "precompute.py "
    "again.",
)
CAPTION = (
    "Z: the {k} leading key-side directions of all heads of block {ref} of the same model "
    "(query-key kernels at "
    "relative position 0, every head counting alike). Band: {method}, 95 %, over {unit}s. Dashed: chance, "
    "the R of an update that has nothing to do with Z; it is not 1."
)


def available(opened: Opened) -> bool:
    """Whether the store holds what R needs."""
    store, names = opened.store, opened.store.array_names()
    return "resid" in store.components() and all(
        tables.kernel_name(model) in names for model in opened.facts.models
    )


def positions(opened: Opened) -> tuple[str, ...]:
    """Positions offered: means over tokens where they were captured, as the definition has it."""
    return opened.facts.averages or opened.facts.positions


def ranks(opened: Opened) -> tuple[int, ...]:
    """Ranks of Z that the slider offers."""
    return tables.offered_ranks(opened.facts.max_k)


def model_names(selection: Selection) -> dict[str, str]:
    """Names for the control of `model`."""
    return {"a": selection.a, "b": selection.b}


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a position and a k that this page can show."""
    offered, ks = positions(opened), ranks(opened)
    return dataclasses.replace(
        selection,
        position=selection.position if selection.position in offered else offered[0],
        layer=min(opened.store.layers(_model(selection)), key=lambda block: abs(block - selection.layer)),
        k=min(ks, key=lambda k: abs(k - selection.k)),
    )


def _model(selection: Selection) -> str:
    return selection.a if selection.model == "a" else selection.b


def lengths_of(selection: Selection) -> dict[str, Any]:
    """What lengths inside and outside Z are asked by."""
    where = {"model": _model(selection), "position": selection.position, "which": chosen_filter(selection)}
    return where | {"ref": selection.ref}


def asked(selection: Selection) -> dict[str, Any]:
    """What R is asked by."""
    return lengths_of(selection) | {"k": selection.k, "mean": selection.mean}


def prepare(opened: Opened, selection: Selection, progress: Progress) -> None:
    """Do the slow part, once for each (model, reference block, position, filter), behind a progress bar."""
    tables.norms(opened.store, **lengths_of(selection), progress=progress)


def _look(selection: Selection, found: ResidualUpdates, colors: Mapping[str, str], height: int = 340) -> Look:
    over = selection.scale == "r_over_chance"
    return Look(
        "R ÷ chance" if over else "R (in Z ÷ outside Z)",
        colors,
        x_title="Update ℓ→ℓ+1 (written by block ℓ+1)",
        references={"chance": 1.0 if over else found.chance},
        selected=selection.layer,
        labels=dict(zip(found.blocks, found.labels, strict=True)),
        height=height,
    )


def _caption(opened: Opened, selection: Selection, method: str) -> str:
    unit = unit_said(opened.store, chosen_filter(selection))
    return CAPTION.format(
        k=selection.k, ref=selection.ref, method=method.split(" over ", maxsplit=1)[0], unit=unit
    )


def _rounding(opened: Opened, selection: Selection, found: ResidualUpdates) -> str:
    """What updates are computed from, how much of them is rounding, and where it is too much to tell
    anything."""
    parts = store_rounding.has_parts(opened.store)
    what = "attn_out + mlp_out" if parts else "differences of stored states"
    text = f" Updates are {what}; rounding is at most {100 * found.rounding.max():.2g} % of their length"
    lost = [label for label, share in zip(found.labels, found.rounding, strict=True) if share > ROUNDED]
    kept = _steps(opened.facts.n_layers[_model(selection)], found)
    told = f", and nothing is told of {', '.join(lost)}, which is mostly that" if lost else ""
    return f"{text}{told}.{kept}"


def _steps(every: int, found: ResidualUpdates) -> str:
    """Which of a model's steps the store has, where it hasn't all of them."""
    if len(found.blocks) == every:
        return ""
    steps = ", ".join(found.labels)
    return f" The store has {len(found.blocks)} of {every} steps ({steps}); lines cross the others."


def curve_panel(opened: Opened, selection: Selection) -> Panel:
    """R of every block with band and chance; the verdict is the title."""
    model = _model(selection)
    found = tables.result(opened.store, **asked(selection))
    call = Call(tables.curve, opened.store, **asked(selection), scale=selection.scale)

    def draw(palette: Palette) -> Chart:
        color = palette.a if selection.model == "a" else palette.b
        return layer_curve(call.table, _look(selection, found, {model: color}), palette)

    caption = _caption(opened, selection, found.ratio.method) + (
        " p_random in the data: energy in Z against random subspaces of the same rank, and against those "
        "with its own share of every coordinate: the larger p, Holm-adjusted."
        f"{_rounding(opened, selection, found)}"
    )
    return Panel.of(call, "updates", words.verdict_title(model, found.verdict), draw, caption, (model,))


def language_panel(opened: Opened, selection: Selection) -> Panel | None:
    """R in each language with chance and band; None with fewer than two languages."""
    model = _model(selection)
    found = tables.result(opened.store, **asked(selection))
    if len(found.languages) < 2:
        return None
    call = Call(tables.by_language, opened.store, **asked(selection), scale=selection.scale)

    def draw(palette: Palette) -> Chart:
        hues = dict(zip(found.languages, palette.series[2:], strict=False))
        return layer_curve(call.table, _look(selection, found, hues, 300), palette)

    caption = _caption(opened, selection, found.ratio.method) + " The next panel says where languages differ."
    chance = 1.0 if selection.scale == "r_over_chance" else found.chance
    title = words.languages_title(call.table, model, chance)
    if selection.scale == "r_over_chance":
        title = title.replace(": R is", ": R ÷ chance is")
    return Panel.of(call, "updates-language", title, draw, caption, (model,))


def asymmetry_panel(opened: Opened, selection: Selection) -> Panel | None:
    """R of one language minus R of the other; None with fewer than two languages."""
    model = _model(selection)
    found = tables.result(opened.store, **asked(selection))
    if not found.differences:
        return None
    one, two = next(iter(found.differences))
    call = Call(tables.asymmetry, opened.store, **asked(selection))

    def draw(palette: Palette) -> Chart:
        look = dataclasses.replace(
            _look(selection, found, {f"{one} − {two}": palette.pair}, 300),
            y_title=f"R in {one} − R in {two}",
            references={"no difference": 0.0},
        )
        return layer_curve(call.table, look, palette)

    what = _caption(opened, selection, found.ratio.method).split(" Band")[0]
    caption = (
        "Differences of R itself, paired: the same resampled prompts serve both languages. The limits hold "
        f"for all blocks together (95 %, largest |t| over blocks). {what}"
    )
    title = words.difference_title(call.table, [one, two], model)
    return Panel.of(call, "updates-asymmetry", title, draw, caption, (model,))


def norms_panel(opened: Opened, selection: Selection) -> Panel:
    """Mean lengths of every block's update: whole, inside Z, outside, and inside if it were unrelated."""
    model = _model(selection)
    found = tables.result(opened.store, **asked(selection))
    call = Call(tables.lengths, opened.store, **lengths_of(selection), k=selection.k)
    chance = chance_ratio(found.d, found.k)

    def draw(palette: Palette) -> Chart:
        hues = {"whole": palette.mark, "outside Z": palette.series[5], "in Z": palette.pair}
        look = _look(selection, found, {**hues, "in Z by chance": palette.null}, 300)
        look = dataclasses.replace(look, y_title="mean length of the update", references=None)
        return layer_curve(call.table, look, palette)

    what = _caption(opened, selection, found.ratio.method).split(" Dashed")[0]
    caption = (
        "Means over prompts, in the unit of the activations. in Z by chance: what an update unrelated to Z "
        f"has inside it, {words.number(chance, 3)} of the length outside. {what}"
        f"{_rounding(opened, selection, found)}"
    )
    told = [b for b, share in zip(found.blocks, found.rounding, strict=True) if share <= ROUNDED]
    title = words.lengths_title(call.table.filter(pl.col("layer").is_in(told)), model)
    return Panel.of(call, "updates-norms", title, draw, caption, (model,))


def split_panel(opened: Opened, selection: Selection) -> Panel | None:
    """R of what attention adds and of what the MLP adds; None when hidden or not captured."""
    captured = set(opened.store.components())
    if selection.parts == "hidden" or not {"attn_out", "mlp_out"} <= captured:
        return None
    model = _model(selection)
    found = tables.result(opened.store, **asked(selection))
    call = Call(tables.split, opened.store, **asked(selection), scale=selection.scale)

    def draw(palette: Palette) -> Chart:
        hues = {"attention": palette.series[4], "MLP": palette.series[5]}
        return layer_curve(call.table, _look(selection, found, hues, 300), palette)

    caption = (
        "R of the two contributions by themselves; their sum is the update. share_in_z in the "
        "data: each part's "
        "signed share of the update's energy inside Z; p: how often a random subspace of Z's dimension tells "
        f"the two apart as much. Selected: {update_label(selection.layer)}."
    )
    title = words.split_title(call.table, model, selection.layer)
    return Panel.of(call, "updates-split", title, draw, caption, (model,))


PANELS: tuple[Callable[[Opened, Selection], Panel | None], ...] = (
    curve_panel,
    language_panel,
    asymmetry_panel,
    norms_panel,
    split_panel,
)
"""Everything the page shows, in order."""
