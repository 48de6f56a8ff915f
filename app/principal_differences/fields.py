"""Settings of principal differences."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import Facts, choice, number
from app.frame.selection import Fields

SHOWN = 10
"""Components that a page shows."""
SMALL = 30_000
"""Blocks times width up to which every block is compared in about a minute of one core."""


def _every(facts: Facts) -> int:
    return 1 if max(facts.n_layers.values()) * facts.width <= SMALL else 4


@dataclass(frozen=True)
class PrincipalFields(Fields):
    """`component`: the one that is looked at, from 1; `about`: what is taken off the differences first;
    `through`: whose unembedding reads it. `compared_every`: every so-manieth block is compared."""

    component: int = number(1, 1, SHOWN)
    about: str = choice("mean", "zero")
    through: str = choice("a", "b")
    compared_every: int = number(1, 1, 64, usual=_every)
