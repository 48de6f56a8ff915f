"""The store itself as an analysis: what was compared, and where the numbers come from."""

from __future__ import annotations

import json

import polars as pl

from app.frame import parts as components
from app.frame import related
from app.frame.analysis import Analysis, Blocks, Chapter
from app.frame.blocks import Table, Text
from app.frame.opened import Opened
from app.frame.selection import Selection, values
from app.frame.stored import describe
from app.overview import panels as overview
from app.overview import view
from store.runs import RunLog

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


def compared(opened: Opened, selection: Selection) -> Blocks:
    """Models and settings."""
    pair = (selection.a, selection.b)
    models = overview.models(opened).filter(pl.col("model").is_in(pair))
    said = {"target": selection.a if selection.target == "a" else selection.b}
    given = values(selection)
    rows = [(name, said.get(field, str(given[field])), field) for field, name in SETTINGS.items()]
    settings = pl.DataFrame(rows, schema=["setting", "value", "field"], orient="row")
    title = f"{selection.a} and {selection.b}" if selection.a != selection.b else selection.a
    others = [name for name in dict.fromkeys(pair) if name != opened.facts.models[0]]
    return (
        Table("models", title, models),
        *(Text(related.sentence(opened, name)) for name in others),
        Table("settings", "Settings", settings, "field: its name in the link of a page."),
    )


def provenance(opened: Opened, _selection: Selection) -> Blocks:
    """Study file, fingerprint, models, versions, self-checks with their values, and every stored run."""
    checks, listed = components.checks_table(opened), runs(opened)
    made = overview.provenance(opened)
    study = Text(
        "As recorded in the store; everything in it that changes a number is part of the fingerprint.",
        "Study file",
        overview.study_text(opened),
        "json",
    )
    said = "Measured by the precompute run on these very models." if checks.height else "None were recorded."
    opens = "Each opens again by its id on the page Runs."
    return (
        Table("self-checks", "Self-checks", checks, said),
        Table("runs", f"Live runs: {listed.height}", listed, opens),
        Table("made", "Store, models and versions", made, folded=True),
        study,
    )


def runs(opened: Opened) -> pl.DataFrame:
    """Every stored run, newest first: run, what, made, problem (of a damaged one)."""
    rows = []
    for line in RunLog(opened.path).list().iter_rows(named=True):
        made = str(line.get("created") or "")[:16].replace("T", " ")
        rows.append((line["run_id"], _described(line["condition"]), made, line["problem"]))
    schema = dict.fromkeys(("run", "what", "made", "problem"), pl.String)
    found = pl.DataFrame(rows, schema=schema, orient="row")
    return found if found["problem"].drop_nulls().len() else found.drop("problem")


def _described(condition: str | None) -> str:
    return "" if condition is None else describe(json.loads(condition))


OVERVIEW = Analysis(
    "overview",
    "Overview",
    "What differs between the two models, and how sure is that?",
    section="Study",
    icon="dashboard",
    blocking=False,
    answers="what was found about a pair, in a sentence each; what has not been run; what the store holds",
    chapters=(
        Chapter(
            "compared",
            "What was compared",
            "The models of the pair, and the settings under which the pages show these numbers.",
            compared,
        ),
    ),
)
ABOUT = Analysis(
    "about",
    "About this study",
    "How these numbers were made, and how to read the same store without this dashboard.",
    section="Study",
    icon="article",
    pair=False,
    blocking=False,
    body=view.about,
    answers="provenance, versions, self-checks with their values",
    chapters=(
        Chapter(
            "provenance",
            "Provenance",
            "How the store was made, what it checked about itself, and every live run that it holds.",
            provenance,
            part="closing",
        ),
    ),
)
