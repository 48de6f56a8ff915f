"""Settings of Z-patching."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import text
from app.frame.selection import Fields


@dataclass(frozen=True)
class ZFields(Fields):
    """`z`: everything that the page asks, as "ks:2,4;problems:20"."""

    z: str = text()
