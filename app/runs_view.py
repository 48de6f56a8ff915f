"""The list of live results and the run that is open."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st

from app import controls, live_view, words
from app.jobs import JobResult
from app.resources import Opened
from engine.condition import Condition
from store.runs import RunLog

WHY_EMPTY = (
    "No live results yet",
    "Run a patch on the Patching page; its result is kept in the store and opens here without a model.",
)


def table(opened: Opened) -> pl.DataFrame:
    """One row per stored run, newest first: what was patched, and the mean KL with its interval."""
    rows = [
        {
            "run": summary["run_id"],
            **_row(condition, summary),
            "made": summary["created"][:16].replace("T", " "),
        }
        for condition, summary in live_view.runs_of(opened)
        if summary.get("curve")
    ]
    return pl.DataFrame(rows)


def _row(condition: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    curve = summary["curve"]
    shown_at = min(curve, key=lambda r: abs(r["alpha"] - 1.0))
    where = condition.get("where") or {}
    shown = [condition["split"], *(v for v in where.values() if v)]
    return {
        "target ← source": f"{condition['target']} ← {condition['source']}",
        "site": f"{condition['component']} @ {condition['layer']}",
        "token": controls.label(condition["position"]),
        "replacement": condition["kind"],
        "α": " to ".join(f"{alpha:g}" for alpha in sorted({curve[0]["alpha"], curve[-1]["alpha"]})),
        "prompts": f"{shown_at['n']} ({', '.join(shown)})",
        "mean KL at α nearest 1": words.nats_span(shown_at),
    }


def pick(listed: pl.DataFrame) -> None:
    """Show the list; a selected row becomes the open run."""

    def selected() -> None:
        rows = st.session_state["runs-list"]["selection"]["rows"]
        controls.change(run=listed["run"][rows[0]] if rows else "")

    st.dataframe(
        listed.drop("run"),
        hide_index=True,
        width="stretch",
        on_select=selected,
        selection_mode="single-row",
        key="runs-list",
        alt="Stored live results",
    )


def open_run(opened: Opened, run_id: str) -> JobResult:
    """A stored run; raises StoreError when the store has no such run or it is damaged."""
    run = RunLog(opened.path).open(run_id)
    return JobResult(run.condition, run.summary, run.tables)


def condition(run: JobResult) -> Condition:
    """The condition of a run."""
    return Condition.from_json(run.condition)
