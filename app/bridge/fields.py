"""Settings of the bridge."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice
from app.frame.selection import Fields


@dataclass(frozen=True)
class BridgeFields(Fields):
    """`way`: direction between two languages; `fit`: method; `pairing`: which problems the null exchanges,
    those of one category where there are several ("any", as "category" once said), or all ("across");
    `intercept`: whether the sides are centred; `space`: Z of the heads, or the dimensions of a stored fit."""

    way: str = choice("forth", "back")
    fit: str = choice("ridge", "minimum_norm")
    pairing: str = choice("any", "category", "across")
    intercept: str = choice("yes", "no")
    space: str = choice("heads", "ard")
