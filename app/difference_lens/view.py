"""The experiment of a selection and back, and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.difference_lens.fields import DifferenceLensFields
from app.frame import controls
from app.frame.opened import Opened
from app.frame.selection import Selection, where_changes, where_of
from engine.difference_lens.spec import DifferenceLens

__all__ = ["asked", "not_run", "planned", "selection_of", "settings"]

OVER = {"prompts": "the study's prompts", "texts": "plain texts"}
READ_AS = {"difference": "difference of the lenses", "linear": "linearised norm"}
FLIPPED = {"auto": "what fits", "prompt": "prompts or pairs", "category": "categories"}
UNIT_HELP = (
    "What is taken as a whole when signs are flipped and units are drawn. Prompts or pairs: findings hold "
    "for prompts of these categories. Categories: for other categories too, where there are enough of them."
)
AS_HELP = (
    "Difference of the lenses: what the base's norm and unembedding make of the tuned model's state, less "
    "what they make of the base's; exact. Linearised: the norm's derivative at the base's state, applied to "
    "the difference, as if that were small."
)


def asked(opened: Opened, selection: Selection) -> DifferenceLens:
    """Model B less model A on the selected prompts at every position of the store, or on plain texts."""
    own = DifferenceLensFields.of(selection)
    given: dict[str, Any] = {"target": selection.b, "source": selection.a, "stride": own.every_block}
    given |= {"reading": own.read_as}
    if own.read_over == "texts" or not opened.facts.positions:
        return DifferenceLens(**given, over="texts", tokens=own.first_tokens)
    given |= {"split": selection.split, "where": where_of(selection), "unit": own.flipped}
    return DifferenceLens(**given, positions=opened.facts.positions)


def selection_of(condition: Mapping[str, Any], _selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `asked` gives this stored condition again."""
    prompts = condition["over"] == "prompts"
    return {
        "a": condition["source"],
        "b": condition["target"],
        "every_block": condition["stride"],
        "read_as": condition["reading"],
        "read_over": condition["over"],
        "first_tokens": condition["tokens"],
        **({"split": condition["split"], "flipped": condition["unit"]} if prompts else {}),
        **(where_changes(condition) if prompts else {}),
    }


def planned(opened: Opened, selection: Selection) -> list[DifferenceLens]:
    """What a full study has of it: what the page opens with."""
    return [] if selection.a == selection.b else [asked(opened, selection)]


def not_run(wanted: DifferenceLens) -> tuple[str, str]:
    """Empty state: what a click will do."""
    read = f"the first {wanted.tokens} tokens of plain texts"
    if wanted.over == "prompts":
        read = f"the chosen prompts at {', '.join(wanted.positions)}"
    return (
        "This difference has not been read",
        f"**Run** takes what {wanted.target}'s stream has that {wanted.source}'s has not, behind every "
        f"block, on {read}, and reads it through the unembedding of {wanted.source}.",
    )


def settings(opened: Opened) -> None:
    """What is read, the place that is shown; behind "More" how it is read and tested."""
    own = DifferenceLensFields.of(controls.current())
    over = own.read_over
    left, right = st.columns(2)
    with left:
        if over == "prompts":
            controls.choose("position", "Token position")
        else:
            controls.steps("at_token", "Token of the texts", range(own.first_tokens))
    with right:
        controls.slide("layer", "Block ℓ")
    with controls.row():
        controls.switch("read_over", "Read", OVER)
        if over == "prompts":
            controls.filter_controls()
        with controls.more():
            controls.switch("read_as", "Read as", READ_AS, help=AS_HELP)
            if over == "prompts":
                controls.switch("flipped", "Units of the null", FLIPPED, help=UNIT_HELP)
            else:
                controls.slide("first_tokens", "First tokens of every text")
            controls.slide("every_block", "Read each n-th block, n")
