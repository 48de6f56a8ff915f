"""Panels about the weights: how many directions heads read, how Z moves over the blocks, what gates read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.grids import layer_heatmap
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.prompts import SEED
from app.frame.selection import Selection
from app.frame.words import number
from app.geometry import snippets, words
from app.geometry import tables as gq
from app.residual_updates import tables as update_queries
from engine.geometry import layers as subspace_layers
from engine.geometry import z as subspace
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
    return all(update_queries.kernel_name(model) in names for model in opened.facts.models)


def comparable(opened: Opened) -> bool:
    """Whether problems come in two languages and the stream was captured."""
    return gq.languages(opened) is not None and bool(sites(opened)) and bool(opened.facts.positions)


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
    places, offered, ks = sites(opened), tokens(opened), gq.ranks(opened)
    return dataclasses.replace(
        selection,
        site=selection.site if selection.site in places else (places or SITES)[0],
        position=selection.position if selection.position in offered else offered[0],
        k=min(ks, key=lambda k: abs(k - selection.k)),
    )


def what(selection: Selection, directions: str = "{k} key-side directions of all heads of a block") -> str:
    """What Z is, for captions; `directions` in the words of panels that show more than the selected k."""
    joined = "every head counting alike" if selection.joined == "blocks" else "heads counting by their energy"
    return WHAT.format(directions=directions.format(k=selection.k), joined=joined)


def ranks_panel(opened: Opened, selection: Selection) -> Panel:
    """Effective rank of every head of every block, against random weights."""
    model = model_of(selection)
    sigma = gq.sigma(opened, model)
    ranks = subspace.effective_rank(sigma)
    variation = subspace_layers.variation(ranks)
    d, d_h = gq.width(opened, model), sigma.shape[-1]
    random = gq.random_ranks(d, d_h)
    layer, head = np.indices(ranks.shape)
    table = pl.DataFrame(
        {
            "layer": layer.ravel(),
            "head": head.ravel(),
            "value": ranks.ravel(),
            "variation": np.repeat(variation, ranks.shape[1]),
        }
    )

    def draw(palette: Palette) -> Chart:
        return matrix(
            table,
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
    title = words.ranks_title(model, ranks, variation, random, d_h)
    return Panel("z-ranks", title, table, draw, snippets.ranks(opened, model), caption, (model,))


def _unrelated(d: int, k: int) -> tuple[float, float]:
    """Central 95 % of the similarity of two unrelated k-subspaces."""
    mean, variance = random_subspace_moments(d, k, 1.0, 1 / k)
    low, high = energy_range(np.array(mean), np.array(variance))
    return float(low), float(high)


def structure_panel(opened: Opened, selection: Selection) -> Panel | None:
    """Similarity of every block's Z to every other's; None with fewer than three blocks."""
    model = model_of(selection)
    values = gq.structure(opened, model, selection.joined).similarity[selection.k]
    if len(values) < 3:
        return None
    d = gq.width(opened, model)
    found = subspace_layers.layer_structure(values, d, selection.k, seed=SEED)
    layer, other = np.indices(values.shape)
    table = pl.DataFrame(
        {"layer": layer.ravel(), "other": other.ravel(), "value": values.ravel().astype(float)}
    )

    def draw(palette: Palette) -> Chart:
        apart = table.with_columns(
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
    code = snippets.structure(opened, model, selection)
    return Panel("z-structure", title, table, draw, code, caption, (model,))


def convergence_panel(opened: Opened, selection: Selection) -> Panel:
    """Similarity of every block's Z to the reference block's, with the range of unrelated subspaces."""
    model = model_of(selection)
    held = gq.structure(opened, model, selection.joined)
    values = held.similarity[selection.k][selection.ref]
    d = gq.width(opened, model)
    low, high = _unrelated(d, selection.k)
    shares = held.shares[selection.k]
    p, p_scales = subspace_layers.resemblance_p(shares[:, selection.ref], shares, values)
    table = pl.DataFrame(
        {
            "layer": range(len(values)),
            "series": model,
            "value": values.astype(float),
            "p_random": p,
            "p_scales": p_scales,
        }
    )
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
        return layer_curve(table.with_columns(value=itself), look, palette, null)

    caption = (
        what(selection)
        + f"Mean squared cosine of the principal angles to Z of reference block {selection.ref}, "
        "which is 1 there and left out. Grey: 95 % of unrelated subspaces (exact moments). Named: beyond "
        "these, and beyond subspaces with the same share of every coordinate (p_scales), since all blocks "
        "may read a few large coordinates; Holm over blocks of the larger p. Weights are given: no sampling "
        "error."
    )
    title = words.convergence_title(model, selection.ref, values, np.maximum(p, p_scales))
    code = snippets.convergence(opened, model, selection)
    return Panel("z-convergence", title, table, draw, code, caption, (model,))


def gates_panel(opened: Opened, selection: Selection) -> Panel | None:
    """Energy of every gate in the same block's Z over chance; None where no gate is known."""
    model = model_of(selection)
    found = gq.structure(opened, model, selection.joined)
    if not found.energy or not np.isfinite(found.moments).all(axis=1).any():
        return None
    d = gq.width(opened, model)
    aligned = subspace_layers.weight_alignment(
        found.energy[selection.k], found.moments[:, 0], found.moments[:, 1], d, selection.k
    )
    chance = selection.k / d
    low, high = energy_range(np.full(len(aligned.ratio), chance), (aligned.sd * chance) ** 2, 0.95)
    table = pl.DataFrame(
        {
            "layer": range(len(aligned.ratio)),
            "series": model,
            "value": aligned.ratio,
            "p_random": aligned.p,
        }
    )
    null = pl.DataFrame({"layer": table["layer"], "low": low / chance, "high": high / chance})

    def draw(palette: Palette) -> Chart:
        color = palette.a if selection.model == "a" else palette.b
        look = Look(
            "energy of W_gate in Z ÷ (k/d)",
            {model: color},
            references={"chance": 1.0},
            selected=selection.layer,
            height=300,
        )
        return layer_curve(table, look, palette, null)

    caption = (
        what(selection) + "Share of ‖W_gate‖² inside Z of the same block, over k/d. Grey: 95 % of random "
        "subspaces (exact moments, Beta). Named blocks: Holm over blocks, 2.5 % on each side. Weights are "
        "given: no sampling error."
    )
    title = words.gates_title(model, aligned.ratio, aligned.p, aligned.p_low)
    return Panel("z-gates", title, table, draw, snippets.gates(opened, model, selection), caption, (model,))


WEIGHTS: tuple[Callable[[Opened, Selection], Panel | None], ...] = (
    ranks_panel,
    structure_panel,
    convergence_panel,
    gates_panel,
)
"""Panels that need no prompts."""
