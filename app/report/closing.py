"""What stands at the end of every report: definitions, and where the numbers come from."""

from __future__ import annotations

import json

import polars as pl

from app import components, overview
from app.report import terms
from app.report.blocks import Section, Table, Text
from app.report.runs import describe
from app.resources import Opened
from app.selection import Selection
from store.runs import RunLog


def definitions(_opened: Opened, _selection: Selection) -> Section:
    """Every term."""
    table = Table("terms", "Terms", terms.table())
    return Section("definitions", "Definitions", "Logarithms are natural; KL is in nats.", (table,))


def provenance(opened: Opened, _selection: Selection) -> Section:
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
    return Section(
        "provenance",
        "Provenance",
        "How the store was made, what it checked about itself, and every live run that it holds.",
        (
            Table("self-checks", "Self-checks", checks, said),
            Table(
                "runs", f"Live runs: {listed.height}", listed, "Each opens again by its id on the page Runs."
            ),
            Table("made", "Store, models and versions", made, folded=True),
            study,
        ),
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
