"""One live patch: what to replace, with what, where and on which prompts. A Condition in, KLs out.

The vector captured at one site and position of the source model, in the source's own tokenisation, replaces
the target model's activation at the very same site and position of the target's own tokenisation.
KL is KL(patched || unpatched) of the target's next-token distribution, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.errors import PatchError
from engine.lab.experiment import PatchExperiment, Split
from engine.lab.grids import Amplitudes

Kind = Literal["raw", "literal", "self", "mean"]


class Condition(PatchExperiment):
    """A live patch: one kind of replacement at one site, at every amplitude.

    Attributes:
        heads: only these heads of the site; for head_z and head_out.
        kind: "raw" (source moment-matched to the target per dimension, moments of the train split), "literal"
            (source as it is), "self" (the target's own activation), "mean" (the target's train mean). The
            last two have no source: it is left out, or the target itself.
        alphas: every alpha is run, as one batched job; kept sorted.
        scale: "vector": alpha * v; "deviation": mu + alpha * (v - mu) with mu the target's train mean.
        split: the prompts reported on, together with `where`.
        top_k: how many next tokens before and after the patch are kept per prompt.
    """

    runner: ClassVar[str] = "engine.patching.run_patch:run"

    job: Literal["patch"] = "patch"
    heads: tuple[int, ...] | None = None
    kind: Kind = "raw"
    alphas: Amplitudes = (1.0,)
    scale: Literal["vector", "deviation"] = "vector"
    split: Split = "validation"
    top_k: int = Field(default=5, ge=0, le=50)

    @model_validator(mode="before")
    @classmethod
    def _its_own_source(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("kind") in ("self", "mean") and "target" in data:
            return {**data, "source": data["target"]}
        return data

    @field_validator("heads")
    @classmethod
    def _usable_heads(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 0):
            raise PatchError(
                "The heads of a patch cannot be used.", expected="at least one, 0 or more", given=value
            )
        return None if value is None else tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _heads_fit_component(self) -> Condition:
        if self.heads is not None and not self.component.startswith("head"):
            raise PatchError(
                f"{self.component} has no heads.",
                expected="heads only with head_z or head_out",
                given=f"heads {list(self.heads)}",
            )
        return self

    @property
    def needs_source(self) -> bool:
        """Whether the source model's activations take part."""
        return self.kind in ("raw", "literal")

    @property
    def needs_train(self) -> bool:
        """Whether activations of the train split take part (moments, or the target's mean)."""
        return self.kind in ("raw", "mean") or self.scale == "deviation"

    def site_text(self) -> str:
        """The site as text: "resid_post@4", "head_z@3:0,2"."""
        heads = "" if self.heads is None else ":" + ",".join(map(str, self.heads))
        return f"{self.component}@{self.layer}{heads}"

    def models(self) -> tuple[str, ...]:
        """The target, and the source where it gives vectors."""
        return (self.target, self.source) if self.needs_source else (self.target,)

    def describe(self) -> str:
        """One line for lists of jobs: "tuned ← base, resid_post@4 at last_content, raw"."""
        models = " ← ".join(self.models())
        return f"{models}, {self.site_text()} at {self.position}, {self.kind}"
