"""Settings of behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice
from app.frame.selection import Fields


@dataclass(frozen=True)
class BehaviourFields(Fields):
    """`answers`: as they were read, or with what readers corrected."""

    answers: str = choice("read", "corrected")
