"""Lengthscales by MMD at one layer: which dimensions carry what two languages share about a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import Field, field_validator, model_validator

from engine.errors import PatchError
from engine.lab.experiment import Experiment
from engine.spec import later

StreamSite = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
Start = Literal["cold", "svd", "random"]
PENALTIES = (0.001, 0.01, 0.1)
RANDOM_DRAWS = 20
"""Random starts of the null: the fewest among which one value can rank first at p < 0.05."""


class Ard(Experiment):
    """Fits one lengthscale per dimension to the token clouds of paired problems, at one (layer, λ).

    Fitted on train problems; whether anything was found is asked of validation problems. Fitted on all of
    them, nothing is left to ask.

    Attributes:
        component: a site as wide as the stream. category: None is all of them.
        languages: the two languages of each problem; a problem counts that has one prompt in each.
        objective, penalty, steps, max_tokens: see `engine.ard.fit.fit_ard`.
        start: "cold": all lengthscales alike. "svd": small where Z, the leading `k` key-side directions of
            the layer's heads, has energy. "random": the same from `draws` random k-subspaces, one fit each:
            how much of its own start a fit keeps when the start means nothing.
        joined: how heads make Z; see `engine.geometry.z.multi_head_basis`.
        problems: most problems that are fitted, and that are held out; drawn with the seed beyond.
        rate: Adam's learning rate on log ℓ. fitted: which problems the fit is made on.
    """

    runner: ClassVar[str] = "engine.ard.run:run"

    job: Literal["ard"] = "ard"
    model: str
    component: StreamSite = "resid_post"
    layer: int = Field(ge=0)
    languages: tuple[str, str]
    category: str | None = None
    objective: Literal["contrastive", "paired"] = "contrastive"
    penalty: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    start: Start = "cold"
    k: int | None = Field(default=None, ge=1)
    joined: Literal["blocks", "kernels"] = "blocks"
    draws: int = Field(default=1, ge=1, le=200)
    steps: int = Field(default=600, ge=1, le=1000)
    max_tokens: int = Field(default=400, ge=2, le=4000)
    problems: int = Field(default=32, ge=2, le=1000)
    rate: float = later(0.05, gt=0.0, le=1.0)
    fitted: Literal["train", "all"] = later("train")

    @field_validator("languages")
    @classmethod
    def _two(cls, value: tuple[str, str]) -> tuple[str, str]:
        if value[0] == value[1]:
            raise PatchError("Two languages are compared.", expected="two different ones", given=value)
        return value

    @model_validator(mode="after")
    def _start_fits(self) -> Ard:
        if (self.start == "cold") != (self.k is None):
            raise PatchError(
                "A start from a subspace needs its dimension k, a cold one has none.",
                expected="k with start svd or random, none with cold",
                given=f"start {self.start}, k {self.k}",
            )
        if self.draws > 1 and self.start != "random":
            raise PatchError(
                "Only random starts are drawn more than once.", expected="draws = 1", given=self.draws
            )
        return self

    def models(self) -> tuple[str, ...]:
        """The one model."""
        return (self.model,)

    def site_text(self) -> str:
        """The site as text: "resid_post@4"."""
        return f"{self.component}@{self.layer}"

    def start_text(self) -> str:
        """The start in words."""
        if self.start == "cold":
            return "cold start"
        if self.start == "svd":
            return f"warm start by Z (k = {self.k})"
        return f"{self.draws} warm starts by random subspaces (k = {self.k})"

    def describe(self) -> str:
        """One line for lists of jobs."""
        both = " and ".join(self.languages)
        what = f"lengthscales at {self.site_text()} for {both}, {self.objective}, λ = {self.penalty:g}"
        return f"{self.model}, {what}, {self.start_text()}"


def categories(condition: Mapping[str, Any], prompts: pl.DataFrame) -> int:
    """Of how many categories the prompts are that a fit (as plain data) may hold out; 1 without any."""
    if condition.get("category") is not None or "category" not in prompts.columns:
        return 1
    return max(1, prompts["category"].n_unique())
