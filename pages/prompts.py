"""Prompts & fairness: what was asked, whether the splits are clean, and which words both models know."""

import streamlit as st

from app import screen
from app.frame import controls
from app.frame import parts as components
from app.prompts import fairness, splits
from app.prompts import study_lines as prompt_filter
from app.prompts import tables as asked
from app.prompts.analysis import PROMPTS

opened = components.begin(PROMPTS.title, PROMPTS.question)
for make in (splits.balance_panel, splits.leakage_panel):
    with components.guard(f"prompts: {make.__name__}"):
        panel = make(opened)
        if panel is not None:
            components.show(opened, panel)
with components.guard("prompts: nearest pairs"):
    nearest = splits.worst_pairs(opened)
    if nearest.height:
        with screen.expander("The validation prompts nearest to train", icon=":material/content_copy:"):
            screen.dataframe(nearest, hide_index=True, width="stretch", height=300)

controls.filter_controls()
chosen = controls.current()
if not asked.has_vocabulary(opened):
    components.empty(*fairness.WHY_EMPTY)
elif chosen.a != chosen.b:
    controls.slide("threshold", "Least shared-vocabulary ratio", step=0.01, help=fairness.THRESHOLD_HELP)
    chosen = controls.current()
    for show in (fairness.shared_panel, fairness.unshared_panel):
        with components.guard(f"prompts: {show.__name__}"):
            found = show(opened, chosen)
            if found is not None:
                components.show(opened, found)
if asked.has_tokens(opened):
    with components.guard("prompts: lengths"):
        components.show(opened, fairness.lengths_panel(opened, chosen))

with components.guard("prompts: table"), st.container(border=True, key="panel-kept"):
    search = screen.text_input("Search the texts (regular expression)", key="prompt-search")
    table = prompt_filter.found(asked.kept(opened, chosen), search)
    screen.markdown(f"#### {table.height} of {opened.store.n_prompts} prompts are kept by these choices")
    shown = {"ratio": st.column_config.NumberColumn("shared ratio", format="%.3f")}
    screen.dataframe(table.drop("row"), hide_index=True, width="stretch", height=360, column_config=shown)
    screen.caption("To keep these and no others, put this into the study file and precompute a new store:")
    st.code(prompt_filter.study_lines(opened, chosen, search), language="toml", wrap_lines=True)
    screen.caption(
        "Splits are made after filtering, so the split shown is no part of it. In a study of more than two "
        "models the ratio must hold for every pair of them."
    )
