"""Settings of fitted lengthscales."""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.frame.fields import choice, number
from app.frame.selection import Fields

USUAL_RATE = round(math.log10(0.05), 6)
PENALTIES = ("0.001", "0.01", "0.1")


@dataclass(frozen=True)
class ArdFields(Fields):
    """What is fitted, from where, with which penalty; which lengthscales count as small; how much is run:
    `fitted` problems, at most `most` of them, at learning rate 10^`rate`."""

    objective: str = choice("contrastive", "paired")
    penalty: str = choice("0.01", among=lambda _facts: PENALTIES)
    start: str = choice("cold", "svd", "random")
    rule: str = choice("outlier", "mixture", "fixed", "median")
    cut: float = number(0.5, -2.0, 4.0)
    steps: int = number(600, 1, 1000)
    cloud: int = number(400, 2, 4000)
    fitted: str = choice("train", "all")
    most: int = number(32, 2, 1000)
    rate: float = number(USUAL_RATE, -12.0, 0.0)
