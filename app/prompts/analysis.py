"""Prompts and fairness as an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import polars as pl
import streamlit as st

from app import screen
from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter, Make, Term
from app.frame.blocks import Table, Text
from app.frame.chapters import collect, plain
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.prompts import fairness, splits, study_lines
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


def show(opened: Opened, _selection: Selection) -> None:
    """Splits; then, below the filter, vocabularies, lengths and the prompts that are kept."""
    for make in (splits.balance_panel, splits.leakage_panel):
        with components.guard(f"prompts: {make.__name__}"):
            components.show_all(opened, [make(opened)])
    with components.guard("prompts: nearest pairs"):
        nearest = splits.worst_pairs(opened)
        if nearest.height:
            with screen.expander("The validation prompts nearest to train", icon=":material/content_copy:"):
                screen.dataframe(nearest, hide_index=True, width="stretch", height=300)
    controls.filter_controls()
    chosen = controls.current()
    if not fairness_queries.has_vocabulary(opened.store):
        components.empty(*fairness.WHY_EMPTY)
    elif chosen.a != chosen.b:
        controls.slide("threshold", "Least shared-vocabulary ratio", step=0.01, help=fairness.THRESHOLD_HELP)
        chosen = controls.current()
        for draw in (fairness.shared_panel, fairness.unshared_panel):
            with components.guard(f"prompts: {draw.__name__}"):
                components.show_all(opened, [draw(opened, chosen)])
    if fairness_queries.has_tokens(opened.store):
        with components.guard("prompts: lengths"):
            components.show(opened, fairness.lengths_panel(opened, chosen))
    with components.guard("prompts: table"), st.container(border=True, key="panel-kept"):
        _kept(opened, chosen)


def _kept(opened: Opened, chosen: Selection) -> None:
    search = screen.text_input("Search the texts (regular expression)", key="prompt-search")
    table = study_lines.found(fairness.kept(opened, chosen), search)
    screen.markdown(f"#### {table.height} of {opened.store.n_prompts} prompts are kept by these choices")
    shown = {"ratio": st.column_config.NumberColumn("shared ratio", format="%.3f")}
    screen.dataframe(table.drop("row"), hide_index=True, width="stretch", height=360, column_config=shown)
    screen.caption("To keep these and no others, put this into the study file and precompute a new store:")
    st.code(study_lines.study_lines(opened, chosen, search), language="toml", wrap_lines=True)
    screen.caption(
        "Splits are made after filtering, so the split shown is no part of it. In a study of more than two "
        "models the ratio must hold for every pair of them."
    )


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """Counts per split, language and category; leakage between the splits; shared vocabulary."""
    table = opened.store.prompts
    by = [c for c in ("split", "language", "category") if c in table.columns]
    title = "Prompts by " + ", ".join(by) if by else "Prompts"
    makers: list[Make] = [partial(splits.leakage_panel, opened)]
    if selection.a != selection.b and fairness_queries.has_vocabulary(opened.store):
        pair = (fairness.shared_panel, fairness.unshared_panel)
        makers += [partial(make, opened, selection) for make in pair]
    if fairness_queries.has_tokens(opened.store):
        makers.append(partial(fairness.lengths_panel, opened, selection))
    return (
        *collect((partial(splits.balance_panel, opened),)),
        Table("counts", title, counts(table, by)),
        *collect(makers),
        *(() if fairness_queries.has_vocabulary(opened.store) else (Text(plain(fairness.WHY_EMPTY)),)),
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
    body=show,
    fields=PromptFields,
)
