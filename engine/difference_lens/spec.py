"""What is asked: two models' streams on the same prompts or texts, their difference read as tokens."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from engine.lab.experiment import EVERYWHERE, Experiment, Split, Where

LONGEST = 4000
"""Characters of a text."""
MOST = 500
"""Texts."""
Reading = Literal["difference", "linear"]
Unit = Literal["auto", "prompt", "category"]


class DifferenceLens(Experiment):
    """The mean difference target − source of the stream behind blocks, through the source's readout.

    Attributes:
        target, source: models of the study; the source's final norm and unembedding read.
        over: "prompts" of the study, or plain "texts".
        positions: of the prompts, as the study names them. split, where: which prompts.
        texts: plain texts; none: `engine.difference_lens.texts`. tokens: so many first tokens of each.
        reading: "difference" of the two models' logit lenses, exact, or "linear": the final norm linearised
            at the source's state.
        unit: what has its sign flipped and is drawn as a whole: a "prompt" (or pair), or a "category".
            "auto": as `engine.lab.units`. Of prompts or texts that are the same so far one counts.
        stride: every so-manieth block from the last one down.
        draws: sign flips, and resamples. top: tokens that are kept of either side.
    """

    runner: ClassVar[str] = "engine.difference_lens.run:run"

    job: Literal["difference_lens"] = "difference_lens"
    target: str
    source: str
    over: Literal["prompts", "texts"] = "prompts"
    positions: tuple[str, ...] = ()
    split: Split = "all"
    where: Where = EVERYWHERE
    texts: tuple[str, ...] = Field(default=(), max_length=MOST)
    tokens: int = Field(default=5, ge=1, le=64)
    reading: Reading = "difference"
    unit: Unit = "auto"
    stride: int = Field(default=1, ge=1)
    draws: int = Field(default=399, ge=199, le=9999)
    top: int = Field(default=12, ge=1, le=50)

    @field_validator("positions", "texts")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """What is named twice is read once."""
        return tuple(dict.fromkeys(value))

    @field_validator("texts")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() or len(text) > LONGEST for text in value):
            raise ValueError(f"texts of 1 to {LONGEST} characters that are not blank")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.over == "prompts" and not self.positions:
            raise ValueError("at least one of the study's positions")
        if self.over == "prompts" and self.texts:
            raise ValueError("'texts' are read with over = \"texts\"")
        if self.over == "texts" and self.positions:
            raise ValueError("'positions' are of prompts; of texts the first tokens are read")
        return self

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def describe(self) -> str:
        """ "tuned − base as tokens: prompts at decision, mean"."""
        read = f"the first {self.tokens} tokens of texts"
        if self.over == "prompts":
            read = f"prompts at {', '.join(self.positions)}"
        return f"{self.target} − {self.source} as tokens: {read}"
