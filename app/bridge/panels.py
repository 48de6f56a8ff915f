"""Panels of the bridge: is one language's part of Z a linear map of the other's?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from app.bridge import spaces, words
from app.bridge import tables as bq
from app.bridge.fields import BridgeFields
from app.charts.bins import counts, histogram
from app.charts.curves import Look, layer_curve
from app.charts.lines import numeric_lines, value_dots
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.words import position_said
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from engine.bridge.numbers import Bridge

__all__ = ["FITS", "PAIRINGS", "WHY_EMPTY", "available", "panels", "warning", "ways"]

INTERCEPTS = {"yes": "centred", "no": "as they are"}
SPACES = {"heads": "Z of the heads", "ard": "ARD-MMD's dimensions"}
INTERCEPT_HELP = (
    "centred: both sides lose their means, an intercept is fitted. as they are: y ≈ x W through the "
    "origin, only "
    "R²'s denominator is centred; a shift between the languages then counts as error."
)
SPACE_HELP = (
    "ARD-MMD's dimensions: the k of smallest lengthscale in the stored fit of the block, at the λ "
    "shown on the "
    "page of ARD-MMD. Blocks without such a fit are left out."
)
FITS = {"ridge": "ridge", "minimum_norm": "minimum norm"}
PAIRINGS = {"any": "same category", "across": "any other"}
WHY_EMPTY = (
    "A bridge needs the same problems in two languages",
    "The bridge maps one language's activations to the other's, problem by problem. Give the prompts a "
    "`pair_id` and a `language`, capture `resid` at `last_content`, `decision` or `mean`, and run "
    "precompute.py; head kernels are written along with it.",
)
MOST_SHOWN = 48
"""Coordinates of W that are drawn: the leading ones."""


def available(opened: Opened) -> bool:
    """Whether the store has head kernels, the stream, and problems in two languages."""
    return geometry.available(opened) and geometry.comparable(opened)


def ways(opened: Opened) -> dict[str, str]:
    """Names for the control of `way`."""
    one, two = geometry_queries.languages(opened.store) or ("", "")
    return {"forth": f"{one} → {two}", "back": f"{two} → {one}"}


def warning(opened: Opened, selection: Selection) -> str | None:
    """What to keep in mind with as many coordinates as problems; None with fewer."""
    found = bq.fitted(opened.store, **spaces.at_block(opened, selection))
    return words.underdetermined(found) if found.underdetermined else None


def panels(opened: Opened, selection: Selection) -> list[Panel]:
    """All panels of the selected block; the profile over blocks where it is shown."""
    found = bq.fitted(opened.store, **spaces.at_block(opened, selection))
    made = [_scores(opened, selection, found)]
    if selection.parts == "shown":
        made.append(_profile(opened, selection))
    made.append(_null(opened, selection, found))
    if found.method == "ridge":
        made.append(_path(opened, selection, found))
    return [*made, _spectrum(opened, selection, found), _matrix(opened, selection, found)]


def _where(opened: Opened, selection: Selection, block: bool = True) -> str:
    start, end = spaces.spoken(opened, selection)
    at = f", block {selection.layer}" if block else ""
    return f"{geometry.model_of(selection)}{at}, {start} → {end}"


def _setting(opened: Opened, selection: Selection, blocks: Sequence[int] = ()) -> str:
    """What is mapped to what, on which problems; in a subspace of which making, by default at the selected
    block."""
    start, end = spaces.spoken(opened, selection)
    if BridgeFields.of(selection).space == "heads":
        made = geometry.what(selection).rstrip()
    else:
        made = spaces.settings(opened, selection, blocks or [selection.layer])
    count = geometry_queries.problem_count(opened.store, selection.split, selection.category, bq.MOST)
    return (
        f"{count}, coordinates of {selection.site} at "
        f"{position_said(selection.position)} in {_space(selection)}, {end} ≈ {start} W{_shift(selection)}. "
        f"{made}"
    )


def _space(selection: Selection) -> str:
    if BridgeFields.of(selection).space == "heads":
        return "the block's own Z"
    return f"the {selection.k} dimensions of smallest lengthscale (ARD-MMD) at the block"


def _shift(selection: Selection) -> str:
    return " + b" if BridgeFields.of(selection).intercept == "yes" else ", without an intercept"


def _permuted(opened: Opened, selection: Selection, draws: int) -> str:
    own, kept = BridgeFields.of(selection), spaces.within(opened, selection)
    among = "problems of its category, so that sharing a category is not enough" if kept else "all problems"
    chooses = "; each chooses its own λ" if own.fit == "ridge" else ""
    return f"Null: {draws} times each problem is paired with another of {among}{chooses}."


def _scores(opened: Opened, selection: Selection, found: Bridge) -> Panel:
    call = Call(bq.scores, opened.store, **spaces.at_block(opened, selection))
    short = pl.col("value").map_elements(words.signed, pl.String)
    shown = call.table.with_columns(low=pl.lit(None), high=pl.lit(None), short=short)
    lowest = (*call.table["value"], *call.table["null_low"].drop_nulls())
    least = min(-0.1, *(value for value in lowest if np.isfinite(value)))

    def draw(palette: Palette) -> Chart:
        return value_dots(shown, x_title="R²", palette=palette, limits=(max(least, -1.0), 1.0))

    chosen = (
        "λ is the one with the smallest left-out error, and the left-out R² is its value: the null, which "
        "chooses in the same way, allows for that. "
        if found.method == "ridge"
        else "Minimum norm: the smallest W with the least error. "
    )
    caption = (
        f"{_setting(opened, selection)} Left out: each problem predicted from the others. {chosen}"
        f"Grey: central 95 % of permuted pairs. {_permuted(opened, selection, bq.DRAWS)} An interval is not "
        "given: resampled problems would predict their own copies. Only the best rotation's left-out R² "
        "above 0.8 is called rotation-like."
    )
    title = words.scores_title(_where(opened, selection), found, spaces.across(opened, selection))
    return Panel.of(call, "bridge-scores", title, draw, caption, (geometry.model_of(selection),), False)


def _profile(opened: Opened, selection: Selection) -> Panel:
    asked = spaces.over_blocks(opened, selection)
    call, found = Call(bq.profile, opened.store, **asked), bq.along(opened.store, **asked)
    table, blocks = call.table, call.table["layer"].to_list()
    model = geometry.model_of(selection)
    curve = table.select("layer", "value", series=pl.lit(model))
    null = table.select("layer", pl.col("null_low").alias("low"), pl.col("null_high").alias("high"))

    def draw(palette: Palette) -> Chart:
        hue = palette.a if selection.model == "a" else palette.b
        look = Look("left-out R²", {model: hue}, selected=selection.layer, height=280)
        return layer_curve(curve, look, palette, null)

    caption = (
        f"Every block in {_space(selection)}, λ chosen anew. Grey: central 95 % of permuted pairs. p "
        "in the data: "
        f"against the largest R² over all blocks. {_permuted(opened, selection, bq.PROFILE_DRAWS)} "
        f"A click selects a block. {_setting(opened, selection, blocks)}"
    )
    where = _where(opened, selection, block=False)
    title = words.profile_title(where, blocks, found, spaces.across(opened, selection))
    return Panel.of(call, "bridge-profile", title, draw, caption, (model,))


def _null(opened: Opened, selection: Selection, found: Bridge) -> Panel:
    call = Call(bq.null, opened.store, **spaces.at_block(opened, selection))
    finite = found.null[np.isfinite(found.null)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bars = counts(finite, least, most, 24).with_columns(series=pl.lit("permuted pairs"))

    def draw(palette: Palette) -> Chart:
        return histogram(
            bars,
            x_title="left-out R²",
            y_title="permutations",
            colors={"permuted pairs": palette.null},
            palette=palette,
            marks={"true pairs": found.r2_loo} if np.isfinite(found.r2_loo) else {},
        )

    caption = f"{_permuted(opened, selection, bq.DRAWS)} {_setting(opened, selection)}".strip()
    title = words.null_title(found, spaces.within(opened, selection))
    return Panel.of(call, "bridge-null", title, draw, caption, (geometry.model_of(selection),), False)


def _path(opened: Opened, selection: Selection, found: Bridge) -> Panel:
    call = Call(bq.path, opened.store, **spaces.at_block(opened, selection))
    line = call.table.select(
        pl.col("penalty").alias("x"), pl.col("r2").alias("value"), series=pl.lit("left-out problems")
    )

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            line,
            x_title="ridge penalty λ",
            y_title="left-out R²",
            colors={"left-out problems": palette.pair},
            palette=palette,
            log_x=True,
            x_format="~e",
            marks={"chosen": found.alpha},
            height=240,
        )

    caption = (
        "λ multiplies ‖W‖² beside the summed squared error. Exact without refitting (hat matrix). λ is "
        f"chosen on this very path; {_permuted(opened, selection, bq.DRAWS)} {_setting(opened, selection)}"
    )
    title = words.path_title(found)
    return Panel.of(call, "bridge-path", title, draw, caption, (geometry.model_of(selection),), False)


def _spectrum(opened: Opened, selection: Selection, found: Bridge) -> Panel:
    call = Call(bq.spectrum, opened.store, **spaces.at_block(opened, selection))
    table = call.table
    line = table.select(pl.col("number").alias("x"), "value", series=pl.lit("W"))
    null = table.select(
        pl.col("number").alias("x"), pl.col("random_low").alias("low"), pl.col("random_high").alias("high")
    )

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            line,
            x_title="number of the singular value",
            y_title="singular value of W",
            colors={"W": palette.pair},
            palette=palette,
            x_format="d",
            null=null,
            floor=0.0,
            height=240,
        )

    caption = (
        "A rotation has singular values 1; ridge makes them smaller. Grey: 95 % of Gaussian matrices with "
        "the same sum of squares (null of no preferred direction). Orthogonality error: ‖WᵀW − I‖ / k. "
        f"{_setting(opened, selection)}"
    )
    title = words.spectrum_title(found)
    return Panel.of(call, "bridge-spectrum", title, draw, caption, (geometry.model_of(selection),), False)


def _matrix(opened: Opened, selection: Selection, found: Bridge) -> Panel:
    call = Call(bq.matrix, opened.store, most=MOST_SHOWN, **spaces.at_block(opened, selection))
    one, two = spaces.spoken(opened, selection)

    def draw(palette: Palette) -> Chart:
        return matrix(
            call.table,
            x="end",
            y="start",
            value="weight",
            x_title=f"coordinate of {two}",
            y_title=f"coordinate of {one}",
            value_title="W",
            palette=palette,
            diverging=True,
            labels=found.k <= 6,
        )

    cut = f" The leading {MOST_SHOWN} of {found.k} coordinates are drawn." if found.k > MOST_SHOWN else ""
    caption = (
        "Coordinates by their importance in Z. W by itself has no interval: its predictions are judged."
        f"{cut} {_setting(opened, selection)}"
    )
    title = words.map_title(found.w)
    return Panel.of(call, "bridge-map", title, draw, caption, (geometry.model_of(selection),), False)
