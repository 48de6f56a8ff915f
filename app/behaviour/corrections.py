"""Answers that were read wrongly, corrected by hand and kept as such: runs of their own beside the "
"first ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app import access, screen
from app.behaviour.fields import BehaviourFields
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.live.jobs import JobResult
from engine.behaviour.spec import Behaviour, Correction

FIGURES = {"right": "right answer", "agrees": "agrees with the claim", "refused": "refuses"}
SAID = {True: "yes", False: "no"}


def known(opened: Opened, plain: Behaviour) -> tuple[Correction, ...]:
    """The corrections of the newest stored run that is `plain` but for them."""
    asked = plain.to_json()
    for condition, _ in live_view.runs_of(opened, "behaviour"):
        rest = {key: value for key, value in condition.items() if key != "corrections"}
        if "corrections" in condition and rest == asked:
            return Behaviour.from_json(condition).corrections
    return ()


def applied(opened: Opened, selection: Selection, wanted: Sequence[Behaviour]) -> list[Behaviour]:
    """Experiments with what is known to be read wrongly, where the selection asks for that."""
    if BehaviourFields.of(selection).answers == "read":
        return list(wanted)
    return [one.model_copy(update={"corrections": known(opened, one)}) for one in wanted]


def with_one(opened: Opened, experiment: Behaviour, new: Correction) -> Behaviour:
    """An experiment with all known corrections and one more."""
    plain = experiment.model_copy(update={"corrections": ()})
    found = {**plain.to_json(), "corrections": [c.model_dump() for c in (*known(opened, plain), new)]}
    return Behaviour.from_json(found)


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
            new = Correction.model_validate({"id": prompt, "figure": figure, "value": not now})
            live_view.start(opened, [with_one(opened, asked[name], new)])
            controls.change(answers="corrected")

    screen.button(f"Count it as {SAID[not now]}", key="correct-submit", on_click=submit)
