"""Panels about the weights: how many directions heads read, how Z moves over the blocks, what gates read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.grids import layer_heatmap
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.call import Call, Progress
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.prompts import SEED
from app.frame.selection import Selection
from app.frame.words import number
from app.geometry import tables as gq
from app.geometry import words
from app.residual_updates.tables import kernel_name
from engine.geometry import layers as subspace_layers
from engine.stats.uncertainty import energy_range, random_subspace_moments

SITES = ("resid_post", "resid_pre")
JOINED = {"blocks": "every head alike", "kernels": "by energy"}
LAYERS = {"one": "this one", "every": "every block"}
WHY_EMPTY = (
    "This store has no head kernels",
    "Z is made of the models' query and key weights. Run precompute.py again on the study file.",
)
WHY_ONE_LANGUAGE = (
    "These prompts do not come in two languages",
    "Separation compares the same problem in two languages. Give the prompts a `pair_id` and a `language`, "
    "and capture `resid` at one token or at `mean`.",
)
WHY_NO_GATE = (
    "Nothing is known of the MLPs' gates here",
    "How much of Z the MLP's gate reads needs a gate projection, one for each block. GPT-2, GPT-NeoX and "
    "Phi have none, mixture-of-experts blocks have one for each expert; a store written before gates were "
    "kept has none either: run precompute.py on the study into a new folder.",
)
WHAT = "Z: {directions}, {joined} (query-key kernels at relative position 0, without biases, norm gains not "
WHAT += "folded in). "


def available(opened: Opened) -> bool:
    """Whether the store holds every model's head kernels."""
    names = opened.store.array_names()
    return all(kernel_name(model) in names for model in opened.facts.models)


def comparable(opened: Opened) -> bool:
    """Whether problems come in two languages and the stream was captured."""
    return gq.languages(opened.store) is not None and bool(sites(opened)) and bool(opened.facts.positions)


def sites(opened: Opened) -> tuple[str, ...]:
    """Places of the stream that can be compared."""
    return tuple(s for s in SITES if s in opened.facts.sites)


def tokens(opened: Opened) -> tuple[str, ...]:
    """Token positions offered; the mean over tokens is always shown beside them."""
    return opened.facts.tokens or opened.facts.positions


def model_of(selection: Selection) -> str:
    """The model that is looked at."""
    return selection.a if selection.model == "a" else selection.b


def model_names(selection: Selection) -> dict[str, str]:
    """Names for the control of `model`."""
    return {"a": selection.a, "b": selection.b}


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a site, a position and a k that this page can show."""
    places, offered, ks = sites(opened), tokens(opened), gq.ranks(opened.store)
    return dataclasses.replace(
        selection,
        site=selection.site if selection.site in places else (places or SITES)[0],
        position=selection.position if selection.position in offered else offered[0],
        k=min(ks, key=lambda k: abs(k - selection.k)),
    )


def place(selection: Selection, pooling: str) -> dict[str, Any]:
    """What every table about problems is asked by, but for the block."""
    names = {name: getattr(selection, name) for name in ("site", "split", "category", "joined")}
    return {"model": model_of(selection), "pooling": pooling} | names


def poolings(opened: Opened, selection: Selection) -> tuple[str, ...]:
    """The token position chosen, and the mean over tokens: as far as they were captured."""
    tokens, means = opened.facts.tokens, opened.facts.averages
    token = selection.position if selection.position in tokens else next(iter(tokens), "")
    return tuple(p for p in (token, next(iter(means), "")) if p)


def prepare(opened: Opened, selection: Selection, progress: Progress) -> None:
    """Do the slow parts that the selection needs and that are not there yet, behind a progress bar."""
    store, model = opened.store, model_of(selection)
    gq.structure(store, model, selection.joined, progress)
    if gq.languages(store) is None:
        return
    layers = store.layers(model) if selection.layers == "every" else [selection.layer]
    wanted = [(layer, pooling) for layer in layers for pooling in poolings(opened, selection)]
    advance: list[Callable[[int, int], None]] = []
    total = gq.STEPS * len(wanted)
    for at, (layer, pooling) in enumerate(wanted):

        def step(done: int, _: int, before: int = at) -> None:
            if not advance:
                advance.append(progress("Comparing problems and random subspaces…"))
            advance[0](min(gq.STEPS * before + done, total - 1), total)

        gq.measured(store, **place(selection, pooling), layer=layer, step=step)
    if advance:
        advance[0](total, total)


def what(selection: Selection, directions: str = "{k} key-side directions of all heads of a block") -> str:
    """What Z is, for captions; `directions` in the words of panels that show more than the selected k."""
    joined = "every head counting alike" if selection.joined == "blocks" else "heads counting by their energy"
    return WHAT.format(directions=directions.format(k=selection.k), joined=joined)


def ranks_panel(opened: Opened, selection: Selection) -> Panel:
    """Effective rank of every head of every block, against random weights."""
    model = model_of(selection)
    call = Call(gq.effective_ranks, opened.store, model=model)
    ranks, d_h = call.table["value"].to_numpy(), gq.sigma(opened.store, model).shape[-1]
    random = gq.random_ranks(gq.width(opened.store, model), d_h)

    def draw(palette: Palette) -> Chart:
        return matrix(
            call.table,
            x="head",
            y="layer",
            value="value",
            x_title="Head",
            y_title="Block ℓ",
            value_title="effective rank",
            palette=palette,
            selected={"layer": selection.layer},
            format=".2f",
        )

    low, high = np.quantile(random, [0.025, 0.975])
    caption = (
        "Effective rank exp H(σ/Σσ) of each head's query-key kernel (relative position 0, without biases). "
        f"Independent random weights of this size give {number(low)} to {number(high)} ({gq.DRAWS} draws, "
        "95 %). variation in the data: standard deviation over the heads of a block, over their mean."
    )
    title = words.ranks_title(model, ranks, call.table["variation"].to_numpy(), random, d_h)
    return Panel.of(call, "z-ranks", title, draw, caption, (model,))


def _unrelated(d: int, k: int) -> tuple[float, float]:
    """Central 95 % of the similarity of two unrelated k-subspaces."""
    mean, variance = random_subspace_moments(d, k, 1.0, 1 / k)
    low, high = energy_range(np.array(mean), np.array(variance))
    return float(low), float(high)


def structure_panel(opened: Opened, selection: Selection) -> Panel | None:
    """Similarity of every block's Z to every other's; None with fewer than three blocks."""
    model = model_of(selection)
    values = gq.structure(opened.store, model, selection.joined).similarity[selection.k]
    if len(values) < 3:
        return None
    call = Call(gq.similarity, opened.store, model=model, joined=selection.joined, k=selection.k)
    d = gq.width(opened.store, model)
    found = subspace_layers.layer_structure(values, d, selection.k, seed=SEED)

    def draw(palette: Palette) -> Chart:
        apart = call.table.with_columns(
            value=pl.when(pl.col("layer") == pl.col("other")).then(None).otherwise(pl.col("value"))
        )
        return layer_heatmap(
            apart,
            x_title="Block",
            y_title="Block",
            value_title="mean cos² of principal angles",
            selected=selection.layer,
            palette=palette,
        )

    high = _unrelated(d, selection.k)[1]
    caption = (
        what(selection)
        + f"Grassmann similarity; 1 on the diagonal is left out. Two unrelated subspaces have "
        f"k/d = {number(selection.k / d, 3)}, 97.5 % of them less than {number(high, 3)}. p: random "
        "orders of the blocks (999). Distant: at least half the depth apart."
    )
    title = words.structure_title(model, found)
    return Panel.of(call, "z-structure", title, draw, caption, (model,))


def convergence_panel(opened: Opened, selection: Selection) -> Panel:
    """Similarity of every block's Z to the reference block's, with the range of unrelated subspaces."""
    model = model_of(selection)
    asked = {"model": model, "joined": selection.joined, "k": selection.k}
    call = Call(gq.convergence, opened.store, **asked, ref=selection.ref)
    values = call.table["value"].to_numpy()
    d = gq.width(opened.store, model)
    low, high = _unrelated(d, selection.k)
    null = pl.DataFrame({"layer": range(len(values)), "low": low, "high": high})

    def draw(palette: Palette) -> Chart:
        color = palette.a if selection.model == "a" else palette.b
        look = Look(
            f"similarity to Z of block {selection.ref}",
            {model: color},
            references={"k/d": selection.k / d},
            selected=selection.layer,
            height=300,
        )
        itself = pl.when(pl.col("layer") == selection.ref).then(None).otherwise(pl.col("value"))
        return layer_curve(call.table.with_columns(value=itself), look, palette, null)

    caption = (
        what(selection)
        + f"Mean squared cosine of the principal angles to Z of reference block {selection.ref}, "
        "which is 1 there and left out. Grey: 95 % of unrelated subspaces (exact moments). Named: beyond "
        "these, and beyond subspaces with the same share of every coordinate (p_scales), since all blocks "
        "may read a few large coordinates; Holm over blocks of the larger p. Weights are given: no sampling "
        "error."
    )
    larger = np.maximum(*(call.table[name].to_numpy() for name in ("p_random", "p_scales")))
    title = words.convergence_title(model, selection.ref, values, larger)
    return Panel.of(call, "z-convergence", title, draw, caption, (model,))


def gates_panel(opened: Opened, selection: Selection) -> Panel | None:
    """Energy of every gate in the same block's Z over chance; None where no gate is known."""
    model = model_of(selection)
    asked: dict[str, Any] = {"model": model, "joined": selection.joined, "k": selection.k}
    aligned = gq.alignment(opened.store, **asked)
    if aligned is None:
        return None
    call, d = Call(gq.gates, opened.store, **asked), gq.width(opened.store, model)
    chance = selection.k / d
    low, high = energy_range(np.full(len(aligned.ratio), chance), (aligned.sd * chance) ** 2, 0.95)
    null = pl.DataFrame({"layer": call.table["layer"], "low": low / chance, "high": high / chance})

    def draw(palette: Palette) -> Chart:
        color = palette.a if selection.model == "a" else palette.b
        look = Look(
            "energy of W_gate in Z ÷ (k/d)",
            {model: color},
            references={"chance": 1.0},
            selected=selection.layer,
            height=300,
        )
        return layer_curve(call.table, look, palette, null)

    caption = (
        what(selection) + "Share of ‖W_gate‖² inside Z of the same block, over k/d. Grey: 95 % of random "
        "subspaces (exact moments, Beta). Named blocks: Holm over blocks, 2.5 % on each side. Weights are "
        "given: no sampling error."
    )
    title = words.gates_title(model, aligned.ratio, aligned.p, aligned.p_low)
    return Panel.of(call, "z-gates", title, draw, caption, (model,))


WEIGHTS: tuple[Callable[[Opened, Selection], Panel | None], ...] = (
    ranks_panel,
    structure_panel,
    convergence_panel,
    gates_panel,
)
"""Panels that need no prompts."""
