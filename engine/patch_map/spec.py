"""What is asked: every block and token of one prompt, each with what another run holds there put in alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from engine.lab.experiment import Experiment

Mapped = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
MAPPED: tuple[Mapped, ...] = get_args(Mapped)
FEWEST_NULLS = 19
"""Prompts that say nothing of the donor's, of which one in 20 would hold the largest effect by chance."""


class PatchMap(Experiment):
    """One patched run for each block, token and site: the donor's activation there, all else as it was.

    Two prompts in one model, one prompt in two models, or two languages of a problem in one model. Which run
    receives and which gives is the direction: the other one is the same with `prompt` and `donor` swapped.

    Attributes:
        target: the model that is run. source: the model whose activations are put in.
        prompt: id of the prompt that is run. donor: id of the one whose activations are put in.
        sites: in the order of `MAPPED`, each once.
        answers: two words of one token whose log-probabilities are compared, what the prompt's own run would
            say and what the donor's would. None: the likeliest next token of either.
        last: of at most so many tokens at the end of the prompts.
        nulls: unrelated prompts whose activations are put in beside the donor's.
    """

    runner: ClassVar[str] = "engine.patch_map.run:run"

    job: Literal["patch_map"] = "patch_map"
    target: str
    source: str
    prompt: str
    donor: str
    sites: tuple[Mapped, ...] = ("resid_post",)
    answers: tuple[str, str] | None = None
    last: int = Field(default=64, ge=1, le=512)
    nulls: int = Field(default=FEWEST_NULLS, ge=0, le=99)

    @field_validator("sites")
    @classmethod
    def _each_once(cls, value: Iterable[Mapped]) -> tuple[Mapped, ...]:
        found = tuple(site for site in MAPPED if site in set(value))
        if not found:
            raise ValueError(f"at least one of {', '.join(MAPPED)}")
        return found

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        if self.answers is not None and (not all(self.answers) or self.answers[0] == self.answers[1]):
            raise ValueError("two different answers, neither of them empty")
        if self.answers is not None and any("/" in answer for answer in self.answers):
            raise ValueError("answers without a slash, which parts them where they are written")
        return self

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def describe(self) -> str:
        """ "tuned ← base, every block and token of p7-en ← p7-zh (resid_post)"."""
        given = self.prompt if self.prompt == self.donor else f"{self.prompt} ← {self.donor}"
        return f"{self.target} ← {self.source}, every block and token of {given} ({', '.join(self.sites)})"
