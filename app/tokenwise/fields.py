"""Settings of the page in links."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import text
from app.frame.selection import Fields


@dataclass(frozen=True)
class TokenwiseFields(Fields):
    """`prompt`: id of the prompt; empty is the first one of validation."""

    prompt: str = text()
