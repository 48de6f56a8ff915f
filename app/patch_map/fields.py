"""Settings of the page in links."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, number, text
from app.frame.selection import Fields
from engine.patch_map.spec import FEWEST_NULLS


@dataclass(frozen=True)
class PatchMapFields(Fields):
    """`receiving`, `donor`: ids of the prompt that is run and of the one that gives; empty: the first of
    validation, and what belongs to it. `giver`: whether the model that is run gives, or the other one.
    `mapped`: sites with commas; empty: the stream. `compared`: "Yes / No". `unrelated`, `ending`: how many
    prompts are the null, and how many last tokens are patched. `coloured`: what cells show."""

    receiving: str = text()
    donor: str = text()
    giver: str = choice("auto", "own", "other")
    mapped: str = text()
    compared: str = text()
    unrelated: int = number(FEWEST_NULLS, 0, 99)
    ending: int = number(64, 1, 512)
    coloured: str = choice("recovery", "kl")
