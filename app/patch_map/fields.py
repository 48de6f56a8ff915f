"""Settings of the page in links."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import Facts, choice, number, text
from app.frame.selection import Fields
from engine.patch_map.spec import FEWEST_NULLS

SMALL = 4096
"""Blocks times width up to which 64 tokens and 20 givers take seconds; larger models begin with 8 tokens."""


def size(facts: Facts) -> int:
    """Blocks times width, to which the work of a patched token is in proportion twice over."""
    return max(facts.n_layers.values()) * facts.width


@dataclass(frozen=True)
class PatchMapFields(Fields):
    """`receiving`, `donor`: ids of the prompt that is run and of the one that gives; empty: the first of
    validation, and what belongs to it. `giver`: whether the model that is run gives, or the other one.
    `mapped`: sites with commas; empty: the stream. `compared`: "Yes / No". `unrelated`, `ending`: how many
    prompts are the null, and how many last tokens are patched, fewer of large models. `coloured`: what cells
    show."""

    receiving: str = text()
    donor: str = text()
    giver: str = choice("auto", "own", "other")
    mapped: str = text()
    compared: str = text()
    unrelated: int = number(FEWEST_NULLS, 0, 99)
    ending: int = number(64, 1, 512, usual=lambda facts: 64 if size(facts) <= SMALL else 8)
    coloured: str = choice("recovery", "kl")
