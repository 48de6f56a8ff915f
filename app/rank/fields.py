"""Settings of the rank page."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice
from app.frame.selection import Fields


@dataclass(frozen=True)
class RankFields(Fields):
    """`basis`: whose directions are swapped; `part`: which half of the page is shown, rank or steering."""

    basis: str = choice("map", "difference")
    part: str = choice("rank", "steering")
