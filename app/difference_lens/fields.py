"""Settings of the page in links."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import Facts, choice, number
from app.frame.selection import Fields

SMALL = 30_000
"""Blocks times width up to which every block is read in about a minute of one core."""


def _every(facts: Facts) -> int:
    return 1 if max(facts.n_layers.values()) * facts.width <= SMALL else 4


def _over(facts: Facts) -> tuple[str, ...]:
    """Prompts are read at positions of one row; a store of samples alone has none."""
    return ("prompts", "texts") if facts.positions else ("texts",)


@dataclass(frozen=True)
class DifferenceLensFields(Fields):
    """`read_over`: the study's prompts or plain texts, of which the first `first_tokens` tokens are read;
    `at_token`: the one that is shown. `read_as`: how the norm is taken. `flipped`: what is a unit.
    `every_block`: every so-manieth block is read."""

    read_over: str = choice("prompts", among=_over, usual=lambda facts: _over(facts)[0])
    first_tokens: int = number(5, 1, 64)
    at_token: int = number(4, 0, 63)
    read_as: str = choice("difference", "linear")
    flipped: str = choice("auto", "prompt", "category")
    every_block: int = number(1, 1, 64, usual=_every)
