"""Raw against mapped: one site and one direction, with controls, over a grid of amplitudes."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.errors import PatchError
from engine.lab.experiment import PatchExperiment
from engine.prompts.draws import MOST, draws_of
from engine.spec import later
from engine.transport.named import MapSpec

MappedKind = Literal["mapped", "raw", "bogus", "shuffled", "random", "mean", "self"]
CONTROLS: tuple[MappedKind, ...] = ("bogus", "shuffled", "random", "mean")
"""What a map has to beat, in the order in which they are shown."""

ALPHAS = tuple(round(0.2 * i, 1) for i in range(1, 11))


class MappedPatch(PatchExperiment):
    """The source's activation carried over by a transport map, against moment matching and controls.

    The map is fitted on all train prompts. α is chosen on the train prompts of `where`, and everything is
    reported on both splits.

    Attributes:
        map: the transport map.
        alphas: amplitudes, to which 1 is added, and the one that gives mapped train vectors the target's
            typical length. Kept sorted.
        scale: "vector": alpha * v; "deviation": mu + alpha * (v - mu) with mu the target's train mean.
        raw_alpha: "fixed" leaves the raw condition at α = 1; "scaled" gives it the same α as the mapped one.
        bogus_layer: layer whose map the bogus control borrows; None is half the blocks away.
        top_k: likeliest next tokens kept per prompt at the best α.
        shared: give every KL a second time on the tokens whose string both tokenizers have, renormalised.
        fitted_at: a sample, "sample(k=16,skip_last=4)": the map is fitted on that many tokens of each train
            prompt in place of the patched one, those that both models read behind the same characters of the
            text, whatever their tokenizers.
    """

    runner: ClassVar[str] = "engine.patching.mapped_run:run"

    job: Literal["mapped"] = "mapped"
    map: MapSpec = MapSpec()
    alphas: tuple[float, ...] = ALPHAS
    scale: Literal["vector", "deviation"] = "vector"
    raw_alpha: Literal["fixed", "scaled"] = "fixed"
    bogus_layer: int | None = Field(default=None, ge=0)
    top_k: int = Field(default=5, ge=1, le=50)
    shared: bool = later(False)
    fitted_at: str = later("")

    @field_validator("fitted_at")
    @classmethod
    def _whole_sample(cls, value: str) -> str:
        if value and not draws_of(value):
            raise PatchError(
                "A map can't be fitted at this position.",
                expected=f"a sample of at most {MOST} tokens, such as sample(k=16,skip_last=4)",
                given=repr(value),
                next_step="leave it out to fit at the patched position.",
            )
        return value

    @field_validator("alphas")
    @classmethod
    def _usable_alphas(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(math.isfinite(alpha) for alpha in value):
            raise PatchError("The amplitudes alpha cannot be used.", expected="finite numbers", given=value)
        return tuple(sorted({alpha + 0.0 for alpha in value} | {1.0}))

    @model_validator(mode="after")
    def _map_fits(self) -> MappedPatch:
        self.map.check(self.component)
        return self

    def describe(self) -> str:
        """One line for lists of jobs: "tuned ← base, mlp_out@5 at decision, mapped by mean shift"."""
        where = f"{self.target} ← {self.source}, {self.site_text()} at {self.position}"
        fitted = f" fitted at {self.fitted_at}" if self.fitted_at else ""
        return f"{where}, mapped by {self.map.describe()}{fitted}"

    def borrowed(self, n_layers: int) -> int:
        """The layer whose map the bogus control uses, among the `n_layers` blocks that both models have."""
        return (self.layer + n_layers // 2) % n_layers if self.bogus_layer is None else self.bogus_layer
