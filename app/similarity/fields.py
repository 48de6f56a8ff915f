"""Settings of similarity."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice
from app.frame.selection import Fields


@dataclass(frozen=True)
class SimilarityFields(Fields):
    """`view`: whether the axis goes down to the null."""

    view: str = choice("values", "null")
