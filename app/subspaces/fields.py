"""Settings of subspace scores."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import Facts, choice, number, text
from app.frame.selection import Fields


def _eight(facts: Facts) -> int:
    return min(8, facts.width)


@dataclass(frozen=True)
class SubspaceFields(Fields):
    """Subspaces of rank `dims`, away from `broad` directions and `clean` ones; what is averaged and shown.
    `hues`: what colours points; `gains`: whether reads have the gains of the norms before them."""

    dims: int = number(8, within=lambda facts: (1.0, float(facts.width)), usual=_eight)
    broad: int = number(64, within=lambda facts: (0.0, max(64.0, float(facts.width))))
    clean: int = number(8, within=lambda facts: (0.0, float(facts.width)), usual=_eight)
    averaged: str = text()
    hues: str = choice("side", "family")
    gains: str = choice("folded", "stored")
