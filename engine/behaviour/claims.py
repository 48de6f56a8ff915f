"""Which prompts are claims to agree with, and columns that a table may lack."""

from __future__ import annotations

from typing import Any

import polars as pl

from engine.behaviour.spec import Wording


def column(prompts: pl.DataFrame, name: str) -> list[Any]:
    """A column as a list; None of every prompt where the table has none."""
    return prompts[name].to_list() if name in prompts.columns else [None] * prompts.height


def claim_prompts(words: Wording, prompts: pl.DataFrame) -> list[bool]:
    """Whether each prompt is one to agree with: its choices are a yes and a no.

    Where no prompt has such choices, every prompt counts.
    """
    yes, no = (
        {form.strip().casefold() for own in lists.values() for form in own} for lists in (words.yes, words.no)
    )
    found = []
    for choices in column(prompts, "choices"):
        said = {str(choice).strip().casefold() for choice in choices or ()}
        found.append(len(said) == 2 and bool(said & yes) and bool(said & no))
    return found if any(found) else [True] * len(found)
