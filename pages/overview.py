"""Overview: what was found about the pair, what to do next, and what the store holds."""

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls, related
from app.frame import parts as components
from app.frame.opened import failed_checks
from app.frame.running import written_runs
from app.overview import findings, panels
from app.overview.analysis import OVERVIEW
from app.report.own import not_stored
from app.tour import view as tour

opened = components.begin(OVERVIEW.title, OVERVIEW.question, blocking=False)
chosen = controls.current()
trusted = opened.store.self_checks() and not failed_checks(opened.store)

if trusted and chosen.a != chosen.b:
    screen.markdown(f"#### {plain(chosen.b)} beside {plain(chosen.a)}")
    with components.guard("overview: common origin"):
        for model in (m for m in (chosen.a, chosen.b) if m != opened.facts.models[0]):
            screen.caption(plain(related.sentence(opened, model)))
    tour.invite(opened)
    for number, one in enumerate(findings.kept(opened, chosen, written_runs(opened.path))):
        if number % 2 == 0:
            columns = st.columns(2, gap="small")
        with columns[number % 2], components.guard(f"overview: {one.analysis.name}"):
            findings.show(opened, one)
    with components.guard("overview: what to do next"):
        not_run = [(group.title, missing) for group, missing in not_stored(opened, chosen)]
        findings.next_steps(opened, not_run)

with screen.expander(
    "What is in the store", icon=":material/inventory_2:", expanded=not trusted or chosen.a == chosen.b
):
    with st.container(horizontal=True, gap="small", key="facts"):
        for name, value, note in panels.facts(opened):
            screen.metric(name, value, help=note, border=True, width=128)
    screen.markdown("#### Models")
    screen.dataframe(panels.models(opened), hide_index=True, width="stretch")
    for model in (m for m in opened.facts.models[1:] if m not in (chosen.a, chosen.b)):
        with components.guard(f"overview: {model}"):
            screen.caption(plain(related.sentence(opened, model)))
    left, right = st.columns(2, gap="medium")
    with left, components.guard("overview: prompts"):
        components.show(opened, panels.prompts_panel(opened))
    with right, components.guard("overview: disk use"):
        components.show(opened, panels.disk_panel(opened))
