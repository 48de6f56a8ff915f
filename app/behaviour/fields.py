"""Settings of behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class BehaviourFields(Fields):
    """`answers`: as they were read, or with what readers corrected; `corrected`: keys of the runs whose
    corrections these are, the newest where it names none of a model's."""

    answers: str = choice("read", "corrected")
    corrected: str = text()
