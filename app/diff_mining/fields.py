"""Settings of the page in links."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, number
from app.frame.selection import Fields


@dataclass(frozen=True)
class DiffMiningFields(Fields):
    """`mined_over`: plain texts or the study's prompts. `mined_units`: what is a unit of the null.
    `mined_topics`: topics at most."""

    mined_over: str = choice("texts", "prompts")
    mined_units: str = choice("auto", "prompt", "category")
    mined_topics: int = number(3, 1, 8)
