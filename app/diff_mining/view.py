"""The experiment of a selection and back, and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.diff_mining.fields import DiffMiningFields
from app.difference_lens.view import FLIPPED, OVER, UNIT_HELP
from app.difference_lens.words import names_of
from app.frame import controls
from app.frame.opened import Opened
from app.frame.selection import Selection, where_changes, where_of
from app.live.jobs import JobResult
from engine.diff_mining.spec import DiffMining

__all__ = ["asked", "below", "not_run", "planned", "selection_of", "settings"]


def asked(_opened: Opened, selection: Selection) -> DiffMining:
    """Model B less model A behind plain texts, or behind the selected prompts."""
    own = DiffMiningFields.of(selection)
    given: dict[str, Any] = {"target": selection.b, "source": selection.a, "topics": own.mined_topics}
    if own.mined_over == "texts":
        return DiffMining(**given)
    given |= {"split": selection.split, "where": where_of(selection), "unit": own.mined_units}
    return DiffMining(**given, over="prompts")


def selection_of(condition: Mapping[str, Any], _selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `asked` gives this stored condition again."""
    prompts = condition["over"] == "prompts"
    return {
        "a": condition["source"],
        "b": condition["target"],
        "mined_over": condition["over"],
        "mined_topics": condition["topics"],
        **({"split": condition["split"], "mined_units": condition["unit"]} if prompts else {}),
        **(where_changes(condition) if prompts else {}),
    }


def planned(opened: Opened, selection: Selection) -> list[DiffMining]:
    """What a full study has of it: what the page opens with."""
    return [] if selection.a == selection.b else [asked(opened, selection)]


def not_run(wanted: DiffMining) -> tuple[str, str]:
    """Empty state: what a click will do."""
    read = "plain texts about nothing in particular" if wanted.over == "texts" else "the chosen prompts"
    return (
        "These models have not been compared word by word",
        f"**Run** asks {wanted.target} and {wanted.source} for the next token behind every token of {read}, "
        "and finds the tokens that one says more often than the other.",
    )


def settings(_opened: Opened) -> None:
    """What is read; behind "More" how it is tested."""
    prompts = DiffMiningFields.of(controls.current()).mined_over == "prompts"
    with controls.row():
        controls.switch("mined_over", "Read", {name: OVER[name] for name in ("texts", "prompts")})
        if prompts:
            controls.filter_controls()
        with controls.more():
            controls.slide("mined_topics", "Topics at most")
            if prompts:
                controls.switch("mined_units", "Units of the null", FLIPPED, help=UNIT_HELP)


def below(result: JobResult, _selection: Selection) -> None:
    """Where the tokens that are shown change most."""
    table = result.tables["contexts"]
    if table.is_empty():
        return
    names = dict(zip(result.table["token_id"], names_of(result.table), strict=True))
    target, source = (f"p {result.condition[role]}" for role in ("target", "source"))
    shown = table.select(
        pl.col("token_id").replace_strict(names, return_dtype=pl.String).alias("token said"),
        pl.col("context").alias("behind"),
        pl.col("p_source").alias(source),
        pl.col("p_target").alias(target if target != source else f"{target} again"),
        pl.col("where").alias("text"),
    )
    with st.container(border=True, key="panel-diff-mining-contexts"):
        screen.markdown("#### Where each of them changes most")
        screen.dataframe(shown, hide_index=True, width="stretch", height=360)
