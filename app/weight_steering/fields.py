"""Settings of weight steering."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, number, text
from app.frame.selection import MAX_ALPHA, Fields


@dataclass(frozen=True)
class WeightSteeringFields(Fields):
    """`deltas`: which weight differences; `strength`: the amplitude looked at; `extent`: what fits a
    time, or all α, answers and prompts."""

    deltas: str = text()
    extent: str = choice("short", "all")
    strength: float = number(1.0, -MAX_ALPHA, MAX_ALPHA)
