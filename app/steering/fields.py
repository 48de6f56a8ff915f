"""Settings of steering."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import text
from app.frame.selection import Fields


@dataclass(frozen=True)
class SteeringFields(Fields):
    """`words`: "Yes / No"; `steered`, `neutral`: groups of prompts, "label:wrong"."""

    words: str = text()
    steered: str = text()
    neutral: str = text()
