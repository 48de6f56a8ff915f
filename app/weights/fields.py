"""Settings of weight differences."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class WeightFields(Fields):
    """`weights`: what is shown per tensor; `head_part`: the projection whose heads; `tensor`: its name."""

    weights: str = choice("relative", "norm", "effective_rank")
    head_part: str = choice("o", "q", "k", "v")
    tensor: str = text()
