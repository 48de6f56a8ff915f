"""Settings of the toy in links."""

from dataclasses import dataclass

from app.frame.fields import choice, number
from app.frame.selection import Fields


@dataclass(frozen=True)
class ToyFields(Fields):
    grain: int = number(1, 1, 4)
    shade: str = choice("light", "dark")
