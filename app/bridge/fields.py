"""Settings of the bridge."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice
from app.frame.selection import Fields


@dataclass(frozen=True)
class BridgeFields(Fields):
    """`way`: direction between two languages; `fit`: method; `pairing`: which problems the null exchanges."""

    way: str = choice("forth", "back")
    fit: str = choice("ridge", "minimum_norm")
    pairing: str = choice("any", "category")
