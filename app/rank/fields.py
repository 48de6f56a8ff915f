"""Settings of the rank page."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class RankFields(Fields):
    """`basis`: whose directions are swapped; `part`: which half of the page is shown, rank or steering;
    `tried`, `ranks`: the amplitudes and ranks of a sweep, "0.3,0.5"; empty are the usual ones."""

    basis: str = choice("map", "difference")
    tried: str = text()
    ranks: str = text()
    part: str = choice("rank", "steering")
