"""Weight steering: one model with W + αΔW over a range of α, for one or several differences ΔW."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from engine.behaviour.spec import Wording
from engine.errors import PatchError
from engine.lab.experiment import Experiment
from engine.spec import later
from engine.steering.spec import Group

ALPHAS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)


class Contrast(BaseModel):
    """A weight difference: W of `plus` − W of `minus`; without `minus`, − W of the steered model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plus: str
    minus: str | None = None


class WeightSteering(Experiment):
    """Measures of a steered model over α, and all differences side by side at one KL.

    agreement, soft refusal and generated answers are read on the prompts of `where`; KL of the next token to
    α = 0 and the perplexity of the prompts' own text on those of `neutral`. α = 0 is always measured. The α
    of equal KL is solved on train, along α > 0, and everything is reported there on validation too.

    Attributes:
        model: whose weights are steered.
        deltas: the differences; each is run at every α.
        alphas: not 0; +1, the difference itself, must be among them.
        where: prompts whose behaviour is wanted. neutral: prompts that should stay as they are.
        budget: nats of KL on neutral prompts; None takes the smallest of the differences' own at α = 1.
        draws: random differences of the control: tensors, norms and ranks of the first difference.
        answers: prompts of `where` in validation that are answered at every α; 0 generates nothing.
        max_new_tokens: longest answer.
        prompts: at most so many of each role and split, whole pairs, evenly spread; None is all.
        lead, wording: as for `Behaviour`.
    """

    runner: ClassVar[str] = "engine.weight_steering.run:run"

    job: Literal["weight_steering"] = "weight_steering"
    model: str
    deltas: tuple[Contrast, ...] = Field(min_length=1, max_length=8)
    alphas: tuple[float, ...] = ALPHAS
    where: Group = Group()
    neutral: Group = Group()
    budget: float | None = Field(default=None, gt=0.0)
    draws: int = Field(default=1, ge=0, le=20)
    answers: int = Field(default=32, ge=0, le=1000)
    max_new_tokens: int = Field(default=48, ge=1, le=2000)
    lead: str = ""
    wording: Wording = Wording()
    prompts: int | None = later(None, ge=4, le=100_000)

    @field_validator("alphas")
    @classmethod
    def _usable_alphas(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        found = tuple(sorted(set(value) - {0.0}))
        if 1.0 not in found or not all(math.isfinite(alpha) for alpha in found):
            raise PatchError(
                "The amplitudes α cannot be used.",
                expected="finite numbers with 1, the difference itself, among them",
                given=value,
            )
        return found

    @field_validator("deltas")
    @classmethod
    def _each_once(cls, value: tuple[Contrast, ...], info: ValidationInfo) -> tuple[Contrast, ...]:
        model, found = info.data.get("model"), []
        for one in value:
            if one.plus == (one.minus or model):
                raise PatchError("A model has no difference from itself.", given=one.plus)
            found.append(Contrast(plus=one.plus) if one.minus == model else one)
        return tuple(dict.fromkeys(found))

    def models(self) -> tuple[str, ...]:
        """The steered model and those whose differences it gets."""
        others = [name for one in self.deltas for name in (one.plus, one.minus) if name is not None]
        return tuple(dict.fromkeys((self.model, *others)))

    def name_of(self, delta: Contrast) -> str:
        """ "tuned − base"."""
        return f"{delta.plus} − {delta.minus or self.model}"

    def series(self) -> tuple[str, ...]:
        """Names of the differences, then of the random ones."""
        return (*map(self.name_of, self.deltas), *(f"random {i + 1}" for i in range(self.draws)))

    def describe(self) -> str:
        """One line for lists of jobs."""
        return f"{self.model} + α ({'; '.join(map(self.name_of, self.deltas))})"


@dataclass(frozen=True)
class Figure:
    """One number over α.

    Attributes:
        name: its name in tables. title, unit: for people. role: which prompts, "wanted" or "neutral".
        kind: "mean" of a value per prompt; "rate" of yes and no; "perplexity", exp of Σ/Σ tokens.
        said: what rises or falls, in a sentence. meaning: what it is, for captions.
    """

    name: str
    title: str
    unit: str
    role: Literal["wanted", "neutral"]
    kind: Literal["mean", "rate", "perplexity"]
    said: str
    meaning: str


FIGURES = (
    Figure(
        "agrees",
        "Agrees with the claim",
        "share of answers",
        "wanted",
        "rate",
        "the share of answers that agree",
        "The generated answer's first word of agreement or disagreement agrees; one with neither does not.",
    ),
    Figure(
        "agreement",
        "log p(Yes) − log p(No)",
        "nats",
        "wanted",
        "mean",
        "log p(Yes) − log p(No)",
        "Probabilities summed over the surface forms of each word, written right after the prompt.",
    ),
    Figure(
        "soft_refusal",
        "Soft refusal",
        "nats per token",
        "wanted",
        "mean",
        "soft refusal",
        "Log of the mean probability of refusal openings minus that of neutral ones, each per token.",
    ),
    Figure(
        "refused",
        "Refuses",
        "share of answers",
        "wanted",
        "rate",
        "the share of answers that refuse",
        "The generated answer holds a refusal by pattern.",
    ),
    Figure(
        "kl",
        "KL to α = 0",
        "nats",
        "neutral",
        "mean",
        "KL",
        "KL(steered ‖ unsteered) of the token that follows the prompt.",
    ),
    Figure(
        "perplexity",
        "Perplexity of the prompts",
        "per token",
        "neutral",
        "perplexity",
        "the perplexity of the prompts",
        "exp of the mean −log p of the rendered prompts' own tokens from the second one on.",
    ),
)
"""What a run can have; rates need generated answers."""
