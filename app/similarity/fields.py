"""Settings of similarity."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class SimilarityFields(Fields):
    """`view`: whether the axis goes down to the null. `against`: another pair of models, "base|critical", of
    the n-th other store as "n:base|tuned"; empty for none."""

    view: str = choice("values", "null")
    against: str = text()
