"""One problem of a Z-patching run, token by token: what the model nearly said at every step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from engine.errors import PatchError
from engine.lab.experiment import Experiment
from engine.z_patching.spec import ZPatching


class ZTokens(Experiment):
    """The likeliest tokens at every generated step of one problem, under every condition of one cell.

    Generated again under the same patches: a run keeps its texts, but not what else was likely.

    Attributes:
        of: the run. problem: number of the problem in it. layer, k: one of its blocks and dimensions.
        top: likeliest tokens that are kept a step.
    """

    runner: ClassVar[str] = "engine.z_patching.run_tokens:run"

    job: Literal["z_tokens"] = "z_tokens"
    of: ZPatching
    problem: int = Field(ge=0)
    layer: int
    k: int
    top: int = Field(default=5, ge=1, le=20)

    @model_validator(mode="after")
    def _in_the_run(self) -> ZTokens:
        if self.layer not in self.of.layers or self.k not in self.of.ks or self.problem >= self.of.problems:
            raise PatchError(
                "The run has no such problem, block or dimension.",
                expected=f"problem below {self.of.problems}, block {self.of.layers}, k {self.of.ks}",
                given=f"problem {self.problem}, block {self.layer}, k {self.k}",
            )
        return self

    def models(self) -> tuple[str, ...]:
        """The one model."""
        return self.of.models()

    def describe(self) -> str:
        """One line for lists of jobs."""
        what = f"likeliest tokens of problem {self.problem} at block {self.layer}, k = {self.k}"
        return f"{what}, of {self.of.describe()}"

    def cell(self) -> ZPatching:
        """The run with this block and dimension alone."""
        fit = next((fit for fit in self.of.fits() if fit.layer == self.layer), None)
        return self.of.model_copy(update={"layers": (self.layer,), "ks": (self.k,), "lengthscales": fit})
