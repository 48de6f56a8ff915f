"""The list of live results, of every kind, and the run that is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import access, screen
from app import analyses as run_kinds
from app.escape import plain
from app.frame import again as rerun
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis
from app.frame.export import csv_bytes
from app.frame.opened import Opened, report
from app.frame.page import leads_back
from app.frame.panel import typeset
from app.frame.selection import Selection, defaults, update
from app.frame.stored import archived, describe, opened_run, tags
from app.live.jobs import JobResult
from app.runs import compare, notes
from engine.errors import PatchbayError
from engine.lab.repeat import Repeat
from store.journal.tags import ARCHIVED

WHY_EMPTY = (
    "No live results yet",
    "Run an experiment on one of the live pages, or with `python precompute.py run`; its result is kept in "
    "the store and opens here without a model.",
)


ROW = 84
"""Pixels of a row: four lines, in which long findings wrap."""


def table(opened: Opened) -> pl.DataFrame:
    """One row per stored run, newest first: what was run, what it found, and its tags."""
    given = tags(opened)
    rows = [
        {
            "run": summary["run_id"],
            "kind": kind_title(condition),
            "experiment": describe(condition),
            "finding": _finding(opened.path, summary["run_id"], summary["created"], opened),
            "tags": " ".join(f"#{tag}" for tag in given.get(summary["run_id"], ())),
            "made": summary["created"][:16].replace("T", " "),
        }
        for condition, summary in live_view.runs_of(opened, None)
    ]
    return pl.DataFrame(rows)


def kind_title(condition: Mapping[str, Any]) -> str:
    """The kind of a stored condition for people."""
    if condition.get("job") == "repeat":
        return "Repetition"
    try:
        return run_kinds.kind_of(condition).title
    except PatchbayError:
        return str(condition.get("job"))


@st.cache_data(show_spinner="Reading runs…", max_entries=2000)
def _finding(path: str, run_id: str, created: str, _opened: Opened) -> str:
    """What the first panel of a run says."""
    run = opened_run(_opened, run_id)
    try:
        if run.condition.get("job") == "repeat":
            again = Repeat.from_json(run.condition)
            return rerun.verdict(rerun.difference(_opened, again, run.tables), again.attempt)
        kind = run_kinds.kind_of(run.condition)
        reason = kind.nothing(run)
        if reason is not None:
            return reason[0]
        if kind.finding is not None:
            return typeset(kind.finding(run))
        panels = kind.panels(_opened, run, asked(_opened, run, defaults(_opened.facts)))
        return panels[0].title if panels else ""
    except PatchbayError as error:
        return error.what
    except Exception as error:  # one run's fault keeps no other from being listed
        return f"It can't be shown here: error {report(error, 'runs: finding')}, see the log."


def asked(opened: Opened, run: JobResult, selection: Selection) -> Selection:
    """The selection under which the run's page asks it again."""
    changes = run_kinds.kind_of(run.condition).selection_of(run.condition, selection)
    return update(selection, opened.facts, **changes)


def ids(run: str) -> list[str]:
    """The runs that a link names, parted by commas, each once."""
    return list(dict.fromkeys(filter(None, run.split(","))))


def narrowed(listed: pl.DataFrame) -> pl.DataFrame:
    """The runs of a chosen kind whose words hold every word that is typed, and a file of them.

    Archived ones are among them where that is asked for.
    """
    put_away = pl.col("tags").str.split(" ").list.contains(f"#{ARCHIVED}")
    count = listed.filter(put_away).height
    with st.container(horizontal=True, vertical_alignment="bottom"):
        typed = screen.text_input(
            "Search", key="runs-search", placeholder="words of experiment, finding or #tag"
        )
        kinds = ["all", *listed["kind"].unique(maintain_order=True)]
        kind = screen.selectbox("Kind", kinds, key="runs-kind")
        if count and not screen.checkbox(f"{count} archived", key="runs-archived"):
            listed = listed.filter(~put_away)
        found = matching(listed, typed, kind)
        screen.download_button(
            "CSV",
            lambda: csv_bytes(found),
            file_name="patchbay-runs.csv",
            mime="text/csv",
            icon=":material/download:",
            key="runs-file",
            on_click="ignore",
        )
    if found.height < listed.height:
        screen.caption(f"{found.height} of {listed.height} runs")
    return found


def matching(listed: pl.DataFrame, typed: str, kind: str = "all") -> pl.DataFrame:
    """Rows of a kind ("all": of every one) in which every typed word occurs, whatever its case."""
    text = pl.concat_str("run", "kind", "experiment", "finding", "tags", separator=" ").str.to_lowercase()
    wanted = [text.str.contains(word, literal=True) for word in typed.lower().split()]
    return listed.filter(*wanted, *([pl.col("kind") == kind] if kind != "all" else []))


def pick(opened: Opened, listed: pl.DataFrame, open_now: Sequence[str]) -> None:
    """Show the list; selected rows become the open runs, beside open ones that aren't listed."""
    ids_listed = listed["run"].to_list()
    # rows are told apart by their number, so another list is another widget
    key = f"runs-list-{hash(tuple(ids_listed)) & 0xFFFFFFFF:x}"

    def selected() -> None:
        rows = [row for row in st.session_state[key]["selection"]["rows"] if row < len(ids_listed)]
        kept = [run for run in open_now if run not in ids_listed]
        controls.change(run=",".join([*kept, *(ids_listed[row] for row in rows)]))

    already = [ids_listed.index(run) for run in open_now if run in ids_listed]
    with st.container(key="runs-list"):
        screen.dataframe(
            listed.drop("run", *([] if any(listed["tags"]) else ["tags"])),
            hide_index=True,
            width="stretch",
            on_select=selected,
            selection_mode="multi-row",
            selection_default={"selection": {"rows": already, "columns": [], "cells": []}},
            key=key,
            row_height=ROW,
            height=min(620, 40 + ROW * listed.height),
            column_config={
                "kind": st.column_config.TextColumn(width=130),
                "experiment": st.column_config.TextColumn(width="medium"),
                "finding": st.column_config.TextColumn(width="large"),
                "tags": st.column_config.TextColumn(width="small"),
                "made": st.column_config.TextColumn(width=140),
            },
            alt="Stored live results",
        )
    if open_now:
        _put_away(opened, open_now)
        named = ("run " if len(open_now) == 1 else "runs ") + ", ".join(open_now)
        screen.caption(f"Open: {plain(named)}.")


def _put_away(opened: Opened, runs: Sequence[str]) -> None:
    """A button that archives the open runs, or takes them back where all are archived."""
    there = archived(opened)
    away = all(run in there for run in runs)

    def mark() -> None:
        with components.guard("runs: archive"):
            for run in runs:
                if away or run not in there:
                    notes.tag(opened, run, f"#-{ARCHIVED}" if away else f"#{ARCHIVED}")

    screen.button(
        "Take out of the archive" if away else "Archive",
        icon=f":material/{'unarchive' if away else 'archive'}:",
        key="runs-archive",
        on_click=mark,
        disabled=not access.may("run"),
        help="Archived runs stay stored, and on their pages; Overview, report and this list leave them out.",
    )


def show(opened: Opened, run: JobResult, selection: Selection) -> None:
    """The open run: a link to its page, its panels, notes, and running it again."""
    if run.condition.get("job") == "repeat":
        original = Repeat.from_json(run.condition).experiment()
        first = live_view.find(opened, original)
        screen.markdown(f"Run again: {plain(original.describe())}")
        if first is not None:
            components.page_link("runs", "Open the first run", controls.link(run=first))
        return
    kind = run_kinds.kind_of(run.condition)
    seen = asked(opened, run, selection)
    screen.markdown(f"##### {kind.title}: {plain(describe(run.condition))}")
    if leads_back(opened, kind, run.condition, seen):
        changes = kind.selection_of(run.condition, selection)
        link = controls.link(**changes, run="")
        components.page_link(kind.page, "Open on its page, to run or change it", link)
    else:
        screen.caption("Its page has no settings for it: a text that is longer than a link, say.")
    reason = kind.nothing(run)
    if reason is not None:
        components.empty(*reason)
    components.show_all(opened, kind.panels(opened, run, seen))
    live_view.notes(run)
    rerun.show(opened, run.condition)
    live_view.watch()


def listing(opened: Opened, selection: Selection) -> None:
    """The list, and what is chosen of it: one run, or several side by side."""
    selected = ids(selection.run)
    notes.show(opened, selected[0] if len(selected) == 1 else "")
    listed = table(opened)
    if not listed.height:
        components.empty(*WHY_EMPTY)
        return
    pick(opened, narrowed(listed), selected)
    if not selected:
        screen.caption("Select a row to open the run; several of one kind to compare them.")
        return
    with components.guard("runs: open"):
        runs = [opened_run(opened, run_id) for run_id in selected]
        if len(runs) == 1:
            show(opened, runs[0], selection)
        else:
            compare.show(opened, selected, runs)


RUNS = Analysis(
    "runs",
    "Runs",
    "Every live experiment of this study, kept in the store; opening one needs no model.",
    section="Live",
    icon="history",
    pair=False,
    body=listing,
)
