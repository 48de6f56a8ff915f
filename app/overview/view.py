"""What the pages Overview and About this study show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import parts as components
from app.frame import related
from app.frame.opened import Opened, failed_checks
from app.frame.running import written_runs
from app.frame.selection import Selection
from app.frame.stored import archived
from app.overview import findings, panels
from app.tour import view as tour
from engine.lab.experiment import Experiment

Missing = Callable[[Opened, Selection], Sequence[tuple[str, Sequence[Experiment]]]]
"""What has no stored result: title and experiments of each group."""


def show(missing: Missing, opened: Opened, selection: Selection) -> None:
    """What was found about the pair and what to do next, where numbers can be trusted; then the store."""
    trusted = opened.store.self_checks() and not failed_checks(opened.store)
    found = bool(trusted and selection.a != selection.b)
    if found:
        _found(missing, opened, selection)
    with screen.expander("What is in the store", icon=":material/inventory_2:", expanded=not found):
        _store(opened, selection)


def _found(missing: Missing, opened: Opened, selection: Selection) -> None:
    screen.markdown(f"#### {plain(selection.b)} beside {plain(selection.a)}")
    with components.guard("overview: common origin"):
        for model in (m for m in (selection.a, selection.b) if m != opened.facts.models[0]):
            screen.caption(plain(related.sentence(opened, model)))
    tour.invite(opened)
    found = findings.kept(opened, selection, (written_runs(opened.path), archived(opened)))
    findings.cards(opened, found[: findings.SHOWN])
    if further := found[findings.SHOWN :]:
        with screen.expander(f"Further findings: {len(further)}", icon=":material/lists:"):
            findings.cards(opened, further)
    with components.guard("overview: what to do next"):
        findings.next_steps(opened, missing(opened, selection))


def _store(opened: Opened, selection: Selection) -> None:
    with st.container(horizontal=True, gap="small", key="facts"):
        for name, value, note in panels.facts(opened):
            screen.metric(name, value, help=note, border=True, width=128)
    screen.markdown("#### Models")
    screen.dataframe(panels.models(opened), hide_index=True, width="stretch")
    for model in (m for m in opened.facts.models[1:] if m not in (selection.a, selection.b)):
        with components.guard(f"overview: {model}"):
            screen.caption(plain(related.sentence(opened, model)))
    left, right = st.columns(2, gap="medium")
    with left, components.guard("overview: prompts"):
        components.show(opened, panels.prompts_panel(opened))
    with right, components.guard("overview: disk use"):
        components.show(opened, panels.disk_panel(opened))


def about(opened: Opened, _selection: Selection) -> None:
    """The study file, provenance, what the numbers mean, and how to read the store elsewhere."""
    provenance, study, meaning, reading = screen.tabs(
        ["Provenance", "Study file", "What the numbers mean", "Open it elsewhere"]
    )
    with provenance:
        screen.dataframe(panels.provenance(opened), hide_index=True, width="stretch", height=560)
    with study:
        screen.caption(
            "As recorded in the manifest; everything that changes a number is part of the fingerprint."
        )
        st.code(panels.study_text(opened), language="json", wrap_lines=True)
    with meaning:
        for title, text in panels.MEANINGS:
            screen.markdown(f"**{title}**")
            screen.markdown(text)
    with reading:
        screen.markdown(
            "The store is a Zarr v3 group with Parquet tables; no model and no part of this project is "
            "needed to read it."
        )
        st.code(panels.reading_code(opened), language="python", wrap_lines=True)
        screen.dataframe(panels.arrays(opened), hide_index=True, width="stretch", height=420)
