"""The chapters of a report that a store alone can fill: every panel is the one its page shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import polars as pl

from app import fairness, fairness_queries, overview, similarity, splits, updates
from app.panel import Panel
from app.report import weights
from app.report.blocks import Block, Section, Table, Text
from app.resources import Opened
from app.selection import Selection
from engine.errors import PatchbayError

Make = Callable[[], Panel | None]

SETTINGS = {
    "a": "model A",
    "b": "model B",
    "target": "target of patches",
    "site": "site",
    "position": "position",
    "split": "prompts of comparisons: split",
    "language": "language",
    "category": "category",
    "estimator": "headline CKA",
    "interval": "CKA interval",
    "method": "transport map",
    "rank": "rank of the map (0 = full)",
    "shrink": "shrinkage γ",
    "k": "rank k of Z",
    "ref": "reference block of Z",
    "mean": "average of R",
}
"""Fields of the selection that a report depends on, with their names."""


def collect(makers: Iterable[Make]) -> tuple[Block, ...]:
    """The panels that can be made; one that cannot says why in its place."""
    found: list[Block] = []
    for make in makers:
        try:
            panel = make()
        except PatchbayError as error:
            found.append(Text(str(error)))
        else:
            found += [panel] if panel is not None else []
    return tuple(found)


def compared(opened: Opened, selection: Selection) -> Section:
    """Models and settings."""
    pair = (selection.a, selection.b)
    models = overview.models(opened).filter(pl.col("model").is_in(pair))
    said = {"target": selection.a if selection.target == "a" else selection.b}
    rows = [
        (name, said.get(field, str(getattr(selection, field))), field) for field, name in SETTINGS.items()
    ]
    settings = pl.DataFrame(rows, schema=["setting", "value", "field"], orient="row")
    title = f"{selection.a} and {selection.b}" if selection.a != selection.b else selection.a
    return Section(
        "compared",
        "What was compared",
        "The models of the pair, and the settings under which the pages show these numbers.",
        (
            Table("models", title, models),
            Table("settings", "Settings", settings, "field: its name in the link of a page."),
        ),
    )


def prompts(opened: Opened, selection: Selection) -> Section:
    """Counts per split, language and category; leakage between the splits; shared vocabulary."""
    table = opened.store.prompts
    by = [c for c in ("split", "language", "category") if c in table.columns]
    title = "Prompts by " + ", ".join(by) if by else "Prompts"
    makers: list[Make] = [partial(splits.leakage_panel, opened)]
    if selection.a != selection.b and fairness_queries.has_vocabulary(opened):
        pair = (fairness.shared_panel, fairness.unshared_panel)
        makers += [partial(make, opened, selection) for make in pair]
    if fairness_queries.has_tokens(opened):
        makers.append(partial(fairness.lengths_panel, opened, selection))
    return Section(
        "prompts",
        "Prompts and fairness",
        "Are the splits clean and balanced, and is the comparison fair to both models' vocabularies?",
        (
            *collect((partial(splits.balance_panel, opened),)),
            Table("counts", title, counts(table, by)),
            *collect(makers),
            *(() if fairness_queries.has_vocabulary(opened) else (Text(plain(fairness.WHY_EMPTY)),)),
        ),
    )


def counts(prompts: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """How many prompts there are: one row per value of the last column of `by`, one column for the others."""
    if not by:
        return prompts.select(prompts=pl.len())
    named = prompts.select(pl.col(c).cast(pl.String).fill_null("none") for c in by)
    if len(by) == 1:
        return named.group_by(by).agg(prompts=pl.len()).sort(by)
    across = pl.concat_str(by[:-1], separator=" ").alias("across")
    long = named.group_by(across, by[-1]).agg(prompts=pl.len()).sort("across")
    wide = long.pivot("across", index=by[-1], values="prompts").fill_null(0).sort(by[-1])
    return wide.with_columns(total=pl.sum_horizontal(pl.exclude(by[-1])))


def similar(opened: Opened, selection: Selection) -> Section:
    """CKA at every captured site; by language and across blocks at the selected one."""
    sites = [s for s in similarity.SITES if s in opened.facts.sites and s != "resid_pre"]
    first = similarity.site_of(selection)
    makers: list[Make] = [partial(make, opened, selection) for make in similarity.panels(selection)]
    if selection.a != selection.b:
        others = [dataclasses.replace(selection, site=s) for s in sites if s != first]
        makers += [partial(similarity.curve_panel, opened, at) for at in others]
    return Section(
        "similarity",
        "Similarity (CKA)",
        "Do the two models place the same prompts in the same geometry, block by block?",
        collect(makers),
    )


def residual_updates(opened: Opened, selection: Selection) -> Section:
    """R of every block, for both models."""
    title = "Residual updates R(ℓ)"
    intro = "How much of what each block adds to the stream lies in the subspace that one block's heads read?"
    if not updates.available(opened):
        return Section("updates", title, intro, missing=plain(updates.WHY_EMPTY))
    chosen = updates.effective(opened, selection)
    sides = ("a",) if selection.a == selection.b else ("a", "b")
    makers: list[Make] = [
        partial(make, opened, dataclasses.replace(chosen, model=side))
        for side in sides
        for make in (updates.curve_panel, updates.language_panel, updates.split_panel)
    ]
    return Section("updates", title, intro, collect(makers))


def weight_differences(opened: Opened, selection: Selection) -> Section:
    """Where the weights differ from the study's first model."""
    title, intro = "Weight differences", "Which weights did the fine-tune change, and by how much?"
    first = opened.facts.models[0]
    pair = [m for m in dict.fromkeys((selection.a, selection.b)) if m != first]
    blocks: list[Block] = []
    for model in pair:
        found = weights.table(opened, model)
        if found is None:
            blocks.append(Text(f"No weight differences of {model} from {first} are stored."))
        elif not found.height:
            blocks.append(Text(weights.title(found, model, first)))
        else:
            blocks += collect((partial(weights.panel, opened, model),))
    missing = "" if blocks else f"Differences are kept against {first} only, the study's first model."
    return Section("weights", title, intro, tuple(blocks), missing)


def plain(why: tuple[str, str]) -> str:
    """A page's reason for being empty, as one sentence without Markdown."""
    return f"{why[0]}. {why[1]}".replace("`", "").replace("**", "")
