"""What is asked: two models on one prompt, of the study or typed."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.lab.experiment import Experiment
from engine.spec import later

LONGEST = 20_000
"""Characters of a typed text at the most."""
SHOWN = 40
"""Characters of a typed text in lists."""


class Tokenwise(Experiment):
    """Next-token distributions of two models at every token of a prompt, and the logit lens of both.

    Attributes:
        target, source: models of the study; KL is KL(target || source).
        prompt: its id; empty where one is typed.
        typed: the user's text of a prompt that the study doesn't have. system: what stands before it; None
            is the study's system message. raw: the text as it is, without a chat template.
        last: of so many of the last tokens the logit lens is read at every state.
        top: so many of the likeliest tokens are kept.
        reply: so many tokens at most of either model's own continuation, always the likeliest; 0 for none.
    """

    runner: ClassVar[str] = "engine.tokenwise.run:run"

    job: Literal["tokenwise"] = "tokenwise"
    target: str
    source: str
    prompt: str = ""
    typed: str = later("", max_length=LONGEST)
    system: str | None = later(None, max_length=LONGEST)
    raw: bool = later(False)
    last: int = Field(default=16, ge=1, le=256)
    top: int = Field(default=5, ge=1, le=50)
    reply: int = later(0, ge=0, le=512)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if bool(self.prompt) == bool(self.typed):
            raise ValueError("either 'prompt', the id of one of the study's, or 'typed', a text; not both")
        if not self.typed and (self.raw or self.system is not None):
            raise ValueError("'raw' and 'system' are of a typed prompt; the study's prompts have theirs")
        if self.raw and self.system is not None:
            raise ValueError("'raw' text has no system message; put it into the text")
        return self

    @property
    def named(self) -> str:
        """The prompt for people: its id, or how the typed text begins."""
        words = " ".join(self.typed.split())
        return self.prompt or (words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…")

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def describe(self) -> str:
        """ "tuned beside base, token by token: p7-en"."""
        return f"{self.target} beside {self.source}, token by token: {self.named}"
