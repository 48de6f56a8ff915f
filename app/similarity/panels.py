"""Similarity panels: CKA per block with its interval and null, by language, and across blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import polars as pl

from app.charts.curves import Look, layer_curve
from app.charts.grids import layer_heatmap
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import prompts as queries
from app.frame import words
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.similarity import contrast, tables
from app.similarity import noise as cka_noise
from app.similarity.fields import SimilarityFields

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out", "head_z")
ESTIMATORS = ("debiased", "biased")
TOO_WIDE = "too wide near CKA 0, as it says from about 0.2 on"
"""What coverage was measured of an interval; see docs/methods/similarity.md."""


def _interval(opened: Opened, selection: Selection) -> str:
    unit = f"{queries.unit_said(opened.store, queries.chosen_filter(selection))}s"
    if selection.interval == "jackknife":
        return f"jackknife over {unit}, {queries.LEVEL:.0%}; {TOO_WIDE}"
    return f"bootstrap over {unit}, {queries.LEVEL:.0%}; {TOO_WIDE} (debiased)"


def _counted(opened: Opened, which: queries.Filter, shown: pl.DataFrame) -> str:
    """How many prompts were looked at; for a sample with its error, half the width of the widest band."""
    text = queries.counted(opened.store, which)
    half = (shown["high"] - shown["low"]).drop_nulls().drop_nans() / 2
    sampled = shown["n"][0] < queries.rows(opened.store, which).size and len(half)
    return f"{text} (sampling error at most ±{words.number(half.max())}, in the band)" if sampled else text  # type: ignore[arg-type]


def _within(kinds: str) -> str:
    return f" within their {kinds}" if kinds else ""


def site_of(selection: Selection) -> str:
    """The captured site compared: `head_out` only exists for patching."""
    return selection.site if selection.site in SITES else "head_z"


def place(selection: Selection) -> dict[str, Any]:
    """What every table of similarity is asked by: pair, site, position, prompts."""
    where = {"site": site_of(selection), "position": selection.position}
    return {"a": selection.a, "b": selection.b, **where, "which": queries.chosen_filter(selection)}


def curve_panel(opened: Opened, selection: Selection) -> Panel:
    """CKA of the pair in every block, both estimators, interval of the chosen one, permuted-pairing null."""
    store, head, asked = opened.store, selection.estimator, place(selection)
    call = Call(tables.cka_with_null, store, **asked, estimator=head, interval=selection.interval)
    null = tables.cka_null(store, **asked, estimator=head)
    shown = cka_noise.with_noise(store, call.table.filter(series=head), **asked, estimator=head)
    banded = call.table.with_columns(
        pl.when(pl.col("series") == head).then(pl.col(c)).otherwise(None).alias(c) for c in ("low", "high")
    )

    def draw(palette: Palette) -> Chart:
        other = next(e for e in ESTIMATORS if e != head)
        look = Look(
            "CKA (1 = same geometry)",
            {head: palette.pair, other: palette.pair2},
            selected=selection.layer,
            zoom=SimilarityFields.of(selection).view == "values",
        )
        return layer_curve(banded.sort(pl.col("series") == head), look, palette, null)

    low, high = (null[c].drop_nulls().drop_nans().to_list() or [math.nan] for c in ("low", "high"))
    caption = (
        f"{_counted(opened, queries.chosen_filter(selection), shown)}. "
        f"Band: {_interval(opened, selection)}. Grey: the same models with prompts "
        f"paired wrongly{_within(null['within'][0])} ({null['draws'][0]} pairings, 95 %), "
        f"here {words.number(min(low))} to "
        f"{words.number(max(high))}. "
        "Biased CKA rises towards 1 when there are fewer prompts than dimensions; the debiased one does not."
        f"{cka_noise.note(shown)}"
    )
    title = words.cka_title(shown, null, selection.a, selection.b, site_of(selection))
    return Panel.of(call, "cka", title, draw, caption, (selection.a, selection.b))


def language_panel(opened: Opened, selection: Selection) -> Panel | None:
    """The chosen estimator's curve for each language; None with fewer than two."""
    if selection.language != "all" or len(opened.facts.languages) < 2:
        return None
    how = {"estimator": selection.estimator, "interval": selection.interval}
    call = Call(tables.cka_by_language, opened.store, **place(selection), **how)
    table = call.table

    def draw(palette: Palette) -> Chart:
        names = table["series"].unique().sort().to_list()
        hues = dict(zip(names, palette.series[2:], strict=False))
        look = Look(f"{selection.estimator} CKA", hues, selected=selection.layer, height=300, zoom=True)
        return layer_curve(table, look, palette)

    split, _, category = queries.chosen_filter(selection)
    counts = "; ".join(
        f"{s}: {queries.counted(opened.store, (split, s, category))}" for s in table["series"].unique().sort()
    )
    caption = (
        f"{counts}. Bands as above. Centred within each language, so a shift between them counts for "
        f"nothing.{cka_noise.note(table)}"
    )
    title = words.language_title(table, selection.a, selection.b)
    return Panel.of(call, "cka-language", title, draw, caption, (selection.a, selection.b))


def heatmap_panel(opened: Opened, selection: Selection) -> Panel:
    """Every block of one model against every block of the other."""
    call = Call(tables.cka_grid, opened.store, **place(selection), estimator=selection.estimator)

    def draw(palette: Palette) -> Chart:
        return layer_heatmap(
            call.table,
            x_title=f"Block of {selection.b}",
            y_title=f"Block of {selection.a}",
            value_title=f"{selection.estimator} CKA",
            selected=selection.layer,
            palette=palette,
        )

    title = words.heatmap_title(call.table, selection.a, selection.b)
    caption = (
        f"{site_of(selection)} at {words.position_said(selection.position)}, "
        f"{queries.counted(opened.store, queries.chosen_filter(selection))}. "
        f"Outlined: block {selection.layer} of {selection.a}. Null as above."
    )
    return Panel.of(call, "cka-grid", title, draw, caption, (selection.a, selection.b))


def panels(selection: Selection) -> tuple[Callable[[Opened, Selection], Panel | None], ...]:
    """Panels of the page: a model against itself only has the grid of its blocks."""
    if selection.a == selection.b:
        return (heatmap_panel,)
    beside = (contrast.panel,) if SimilarityFields.of(selection).against else ()
    return (curve_panel, *beside, language_panel, heatmap_panel)
