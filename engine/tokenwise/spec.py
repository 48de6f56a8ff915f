"""What is asked: two models on one prompt of the study."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from engine.lab.experiment import Experiment


class Tokenwise(Experiment):
    """Next-token distributions of two models at every token of a prompt, and the logit lens of both.

    Attributes:
        target, source: models of the study; KL is KL(target || source).
        prompt: its id.
        last: of so many of the last tokens the logit lens is read at every state.
        top: so many of the likeliest tokens are kept.
    """

    runner: ClassVar[str] = "engine.tokenwise.run:run"

    job: Literal["tokenwise"] = "tokenwise"
    target: str
    source: str
    prompt: str
    last: int = Field(default=16, ge=1, le=256)
    top: int = Field(default=5, ge=1, le=50)

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def describe(self) -> str:
        """ "tuned beside base, token by token: p7-en"."""
        return f"{self.target} beside {self.source}, token by token: {self.prompt}"
