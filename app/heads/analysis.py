"""Heads as an analysis."""

from __future__ import annotations

import polars as pl

from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import first_of, of_kind
from app.frame.stored import per_prompt
from app.heads import view
from app.heads.fields import HeadFields
from app.live.jobs import JobResult

SIZES = ("n_heads", "head_dim")
TERMS = (
    Term(
        "coverage",
        "How much of the effect of all heads of a block a set S of them has; a ratio of means, which can "
        "exceed 100.",
        "100 · KL_S / KL_all",
    ),
)


def each(run: JobResult) -> pl.DataFrame:
    """KL of all heads together, of a run of one block; a map of blocks keeps none of single prompts."""
    table = run.tables.get("prompts", pl.DataFrame(schema={"id": pl.String}))
    return per_prompt(table, {"kl_all": "KL of all heads, nats"})


SUBSETS = Kind(
    "heads",
    "Heads",
    "Which attention heads carry the difference between the two models?",
    {"heads": 0.8, "head_map": 1.0},
    view.PAGE,
    view.selection_of,
    view.run_panels,
    view.nothing,
    each=each,
)
HEADS = Analysis(
    "heads",
    "Heads",
    "Which attention heads of a block carry the difference between the two models?",
    section="Live",
    icon="hub",
    answers=(
        "which heads carry it? single heads, growing sets, leave-one-out, pairs, a map of all blocks, and "
        "two cheap predictors"
    ),
    null="random sets; paired bootstrap",
    kinds=(SUBSETS,),
    planned=(
        Planned("head-map", "Every head of every block", lambda _opened, s: [view.map_of(s)], alike=SIZES),
        Planned(
            "heads",
            "Heads of one block in depth",
            lambda _opened, at: [view.experiment_of(at)],
            alike=SIZES,
            deepest=True,
        ),
    ),
    chapters=(of_kind(SUBSETS),),
    terms=TERMS,
    empty=lambda opened: None if opened.facts.tokens else view.WHY_EMPTY,
    controls=view.settings,
    body=view.show,
    headline=first_of(SUBSETS),
    fields=HeadFields,
)
