"""Steering and ablation: one direction at one site, its wanted shift against its side effects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.errors import PatchError
from engine.lab.experiment import PatchExperiment, Where
from engine.spec import later

ALPHAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_OF_DIRECTION = {"leading": "leading", "dims": "leading", "plus": "contrast", "minus": "contrast"}
"""Fields that belong to one direction; a contrast and an unembedding have no source either."""


class Group(Where):
    """Which prompts: one language, category and/or label; None is all of them."""

    label: str | None = None


class Steering(PatchExperiment):
    """Adds a unit direction v to the target's own activation, or takes the part along v away.

    add: own + α · m · v, m the site's mean norm over the train prompts, both signs of every α. ablate:
    own − (own·v) v, and the same about the train mean μ: own − ((own − μ)·v) v.

    With `dims` k > 1 the part inside the span B of k leading directions is taken away, own − B Bᵀ own, beside
    random spans of k, and v is the mean difference's part inside B.

    wanted shift: change of log p(wanted) − log p(against) of the next token, on the prompts of `where`.
    side effect: KL(steered || unpatched) on the prompts of `neutral`.

    Attributes:
        direction: "difference": mean of source − target; "leading": a leading direction of source − target,
            not centred; "contrast": mean over `plus` − mean over `minus` within the target; "unembedding":
            the wanted tokens' unembedding − the others', times the final norm's gain. From train prompts.
        leading: which leading direction, from 1. dims: how many, from that one on.
        plus, minus: the two groups of a contrast.
        wanted, against: words; each stands for all its forms that are one token of the target's tokenizer.
        where: prompts whose shift is wanted. neutral: prompts that should stay as they are.
        alphas: sizes of α, positive; kept sorted.
        budget: nats; α is the one with the largest wanted shift whose side effect stays within it, on train.
        draws: random directions of the control.
    """

    runner: ClassVar[str] = "engine.steering.run:run"

    job: Literal["steering"] = "steering"
    where: Group = Group()
    direction: Literal["difference", "leading", "contrast", "unembedding"] = "difference"
    leading: int = Field(default=1, ge=1)
    plus: Group = Group()
    minus: Group = Group()
    wanted: tuple[str, ...] = ("Yes",)
    against: tuple[str, ...] = ("No",)
    neutral: Group = Group()
    alphas: tuple[float, ...] = ALPHAS
    budget: float = Field(default=0.1, gt=0.0)
    dims: int = later(1, ge=1, le=64)
    draws: int = Field(default=8, ge=2, le=100)

    @model_validator(mode="before")
    @classmethod
    def _only_what_the_direction_has(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        direction = data.get("direction", "difference")
        unused = {name for name, owner in _OF_DIRECTION.items() if owner != direction}
        found = {key: value for key, value in data.items() if key not in unused}
        if direction in ("contrast", "unembedding") and "target" in data:
            found["source"] = data["target"]
        return found

    @field_validator("alphas")
    @classmethod
    def _usable_alphas(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < 2 or not all(math.isfinite(alpha) and alpha > 0 for alpha in value):
            raise PatchError(
                "The amplitudes α cannot be used.",
                expected="at least two, positive and finite; both signs are run",
                given=value,
            )
        return tuple(sorted(set(value)))

    @field_validator("wanted", "against")
    @classmethod
    def _some_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word for word in value if word))
        if not words:
            raise PatchError("A shift needs words on both sides.", expected="at least one", given="none")
        return words

    @model_validator(mode="after")
    def _two_groups(self) -> Steering:
        if self.direction == "contrast" and self.plus == self.minus:
            raise PatchError(
                "A contrast needs two different groups of prompts.",
                expected="another language, category or label on each side",
                given=f"{self.plus.describe()} on both",
            )
        return self

    @property
    def needs_source(self) -> bool:
        """Whether the source's activations take part."""
        return self.direction in ("difference", "leading")

    def models(self) -> tuple[str, ...]:
        """The target, and the source where it gives the direction."""
        return (self.target, self.source) if self.needs_source else (self.target,)

    def direction_text(self) -> str:
        """The direction in words."""
        if self.direction == "difference":
            return f"mean of {self.source} − {self.target}"
        if self.direction == "leading":
            last = self.leading + self.dims - 1
            which = f"direction {self.leading}" if self.dims == 1 else f"directions {self.leading} to {last}"
            return f"{which} of {self.source} − {self.target}"
        if self.direction == "contrast":
            return f"mean of ({self.plus.describe()}) − mean of ({self.minus.describe()})"
        return f"unembedding of {'/'.join(self.wanted)} − {'/'.join(self.against)}"

    def describe(self) -> str:
        """One line for lists of jobs."""
        where = f"{self.site_text()} at {self.position}"
        return f"{self.target}, {where}, steering along {self.direction_text()}"
