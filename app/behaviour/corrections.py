"""Answers that were read wrongly, corrected by hand and kept as such: runs of their own beside the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
import streamlit as st

from app import access, screen
from app.behaviour import view
from app.behaviour.fields import BehaviourFields
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.selection import Selection, changed
from app.live.jobs import JobResult
from engine.behaviour.spec import Behaviour, Correction
from engine.errors import JobError

FIGURES = {"right": "right answer", "agrees": "agrees with the claim", "refused": "refuses"}
SAID = {True: "yes", False: "no"}


def known(opened: Opened, plain: Behaviour, selection: Selection) -> tuple[Correction, ...]:
    """The corrections of the stored run that is `plain` but for them: of the first that the selection names,
    which may be `plain` itself, else of the newest."""
    asked = plain.to_json()
    found = [
        Behaviour.from_json(condition)
        for condition, _ in live_view.runs_of(opened, "behaviour")
        if "corrections" in condition
        and {key: value for key, value in condition.items() if key != "corrections"} == asked
    ]
    keys = {view.run_key(one): one for one in (plain, *found)}
    named = (keys[key] for key in BehaviourFields.of(selection).corrected.split(",") if key in keys)
    return next(named, (*found, plain)[0]).corrections


def applied(opened: Opened, selection: Selection, wanted: Sequence[Behaviour]) -> list[Behaviour]:
    """Experiments with what is known to be read wrongly, where the selection asks for that."""
    if BehaviourFields.of(selection).answers == "read":
        return list(wanted)
    return [one.model_copy(update={"corrections": known(opened, one, selection)}) for one in wanted]


def with_one(
    opened: Opened, experiment: Behaviour, new: Correction, selection: Selection, table: pl.DataFrame
) -> Behaviour:
    """An experiment with all known corrections and one more; values that were read, in the run's `table`,
    need none."""
    plain = experiment.model_copy(update={"corrections": ()})
    every = [c.model_dump() for c in (*known(opened, plain, selection), new)]
    merged = Behaviour.from_json({**plain.to_json(), "corrections": every})
    kept = tuple(c for c in merged.corrections if _as_read(table, c) != c.value)
    return merged.model_copy(update={"corrections": kept})


def _as_read(table: pl.DataFrame, correction: Correction) -> bool:
    before = f"{correction.figure} as read"
    column = before if before in table.columns else correction.figure
    return bool(table.filter(pl.col("id") == correction.id)[column].item())


def naming(
    opened: Opened, selection: Selection, asked: Mapping[str, Behaviour], who: str, new: Behaviour
) -> str:
    """The setting `corrected` that names a new run, and everyone's runs so far, which hold until it is
    stored."""
    plain = [one.model_copy(update={"corrections": ()}) for one in asked.values()]
    now = applied(opened, changed(selection, answers="corrected"), plain)
    after = dict(zip(asked, now, strict=True)) | {who: new}
    return ",".join(dict.fromkeys(map(view.run_key, (*after.values(), *now))))


def show(opened: Opened, runs: Mapping[str, JobResult], asked: Mapping[str, Behaviour]) -> None:
    """Which answers count, and a form that corrects one."""
    texts = {name: run for name, run in runs.items() if "generated" in run.table.columns}
    if not texts:
        return
    with controls.row():
        controls.switch("answers", "Answers", {"read": "as read", "corrected": "with corrections"})
        with screen.popover("Correct an answer", icon=":material/edit:", key="correct-answer"):
            _form(opened, texts, asked)


def _form(opened: Opened, texts: Mapping[str, JobResult], asked: Mapping[str, Behaviour]) -> None:
    name = screen.selectbox("Whose answer", list(texts), key="correct-who")
    table = texts[name].table
    figures = [figure for figure in FIGURES if table[figure].drop_nulls().len()]
    if not figures:
        screen.caption("No answer here has a yes or a no to correct.")
        return
    figure = screen.selectbox("What", figures, key="correct-figure", format_func=FIGURES.__getitem__)
    rows = {str(row["id"]): row for row in table.iter_rows(named=True) if row[figure] is not None}
    prompt = screen.selectbox(
        "Prompt", list(rows), key="correct-prompt", format_func=lambda i: f"{rows[i]['text'][:60]} ({i})"
    )
    now = bool(rows[prompt][figure])
    st.text(rows[prompt]["generated"])
    screen.caption(
        f"Counted as {SAID[now]}. The value that was read stays in the table, and a note counts it."
    )

    def submit() -> None:
        with components.guard("correct an answer"):
            access.require("run")
            if live_view.active():
                raise JobError(
                    "Another experiment is still running.",
                    expected="one correction after the other",
                    given=f"{name}, {prompt}",
                    next_step="wait until it is done, and correct this answer then.",
                )
            new = Correction.model_validate({"id": prompt, "figure": figure, "value": not now})
            one = with_one(opened, asked[name], new, controls.current(), table)
            if live_view.stored(opened, one) is None:
                live_view.start(opened, [one])
            controls.change(
                answers="corrected", corrected=naming(opened, controls.current(), asked, name, one)
            )

    busy = bool(live_view.active())
    screen.button(f"Count it as {SAID[not now]}", key="correct-submit", on_click=submit, disabled=busy)
