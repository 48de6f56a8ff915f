"""What is asked: two models behind every token of the same prompts or texts, and which tokens they say."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from engine.difference_lens.spec import LONGEST, MOST, Unit
from engine.lab.experiment import EVERYWHERE, Experiment, Split, Where


class DiffMining(Experiment):
    """The change of every token's probability, target less source, behind all tokens of prompts or texts.

    Attributes:
        target, source: models of the study, of one tokenizer.
        over: plain "texts", or "prompts" of the study as the models read them. split, where: which prompts.
        texts: plain texts; none: `engine.difference_lens.texts`.
        unit: as in the difference lens: what has its sign flipped and is drawn as a whole.
        least: probability, on average over both models and all units, from which on a token is tested.
        draws: sign flips, and resamples. top: tokens that are kept of either side. topics: at most so many.
    """

    runner: ClassVar[str] = "engine.diff_mining.run:run"

    job: Literal["diff_mining"] = "diff_mining"
    target: str
    source: str
    over: Literal["texts", "prompts"] = "texts"
    split: Split = "all"
    where: Where = EVERYWHERE
    texts: tuple[str, ...] = Field(default=(), max_length=MOST)
    unit: Unit = "auto"
    least: float = Field(default=1e-4, gt=0, lt=1)
    draws: int = Field(default=399, ge=199, le=9999)
    top: int = Field(default=12, ge=1, le=50)
    topics: int = Field(default=3, ge=1, le=8)

    @field_validator("texts")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """What is named twice is read once."""
        if any(not text.strip() or len(text) > LONGEST for text in value):
            raise ValueError(f"texts of 1 to {LONGEST} characters that are not blank")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.over == "prompts" and self.texts:
            raise ValueError("'texts' are read with over = \"texts\"")
        return self

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def describe(self) -> str:
        """ "tuned − base in what is said next: plain texts"."""
        read = "plain texts" if self.over == "texts" else "prompts"
        return f"{self.target} − {self.source} in what is said next: {read}"
