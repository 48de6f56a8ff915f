"""Settings of the prompts' fairness."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import number
from app.frame.selection import Fields


@dataclass(frozen=True)
class PromptFields(Fields):
    """`threshold`: the least shared-vocabulary ratio of a prompt."""

    threshold: float = number(0.0, 0.0, 1.0)
