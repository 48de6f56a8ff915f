"""Prompts and fairness as an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import polars as pl

from app.frame.analysis import Analysis, Blocks, Chapter, Make, Term
from app.frame.blocks import Table, Text
from app.frame.chapters import collect, plain
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.prompts import fairness, splits
from app.prompts import tables as fairness_queries
from app.prompts.fields import PromptFields

QUESTION = "Are the splits clean and balanced, and is the comparison fair to both models' vocabularies?"
TERMS = (
    Term(
        "shared-vocabulary ratio",
        "For two tokenizers: the smaller, over the two models, of the share of a prompt's content tokens "
        "whose string the other tokenizer has too.",
        "min_m (shared content tokens)_m / (content tokens)_m",
    ),
)


def chapter(opened: Opened, selection: Selection) -> Blocks:
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
    return (
        *collect((partial(splits.balance_panel, opened),)),
        Table("counts", title, counts(table, by)),
        *collect(makers),
        *(() if fairness_queries.has_vocabulary(opened) else (Text(plain(fairness.WHY_EMPTY)),)),
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


PROMPTS = Analysis(
    "prompts",
    "Prompts & fairness",
    QUESTION,
    section="Study",
    icon="checklist",
    answers=(
        "are the splits clean and balanced? which words do both models know, and how many prompts remain "
        "at a threshold?"
    ),
    null="overlap within train; Wilson over groups",
    chapters=(Chapter("prompts", "Prompts and fairness", QUESTION, chapter),),
    terms=TERMS,
    fields=PromptFields,
)
