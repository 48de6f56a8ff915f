"""Settings of steering."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, number, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class SteeringFields(Fields):
    """`words`: "Yes / No"; `steered`, `neutral`: groups of prompts, "label:wrong"; `span`: how many leading
    directions, from the chosen one on; `spans`: whether one number of them is run or several."""

    words: str = text()
    steered: str = text()
    neutral: str = text()
    span: int = number(1, 1, 64)
    spans: str = choice("one", "every")
