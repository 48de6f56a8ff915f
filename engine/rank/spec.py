"""How many dimensions carry a mapped patch: every rank k at every amplitude α, of the map and of the swap."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.errors import PatchError
from engine.lab.experiment import PatchExperiment
from engine.lab.grids import Amplitudes
from engine.transport.named import NAMES, MapSpec

ALPHAS = (0.5, 0.75, 1.0, 1.25, 1.5)


class RankSweep(PatchExperiment):
    """One site, one direction, one map; every rank at every amplitude, in one sweep.

    Two questions are asked of each k. `truncated`: what is a map of rank k worth? ŷ_k replaces the
    activation. `projector`: how many dimensions of the replacement matter? Only the part of (mapped − own)
    inside a k-dimensional basis is swapped.

    Attributes:
        map: the transport map; `truncated` needs ScaledProcrustes, whose one decomposition gives every k.
        alphas: every amplitude is run; kept sorted.
        scale: "vector": α·ŷ; "deviation": μ + α(ŷ − μ), μ the target's train mean.
        raw_alpha: whether α also scales the raw patch that drop% is relative to ("scaled") or not ("fixed").
        basis: of the projector. "map": what the map of rank k writes, orth(C_y^{1/2} V_k). "difference": the
            leading directions of (mapped − own) over the train prompts, not centred.
        ks: ranks, clipped to the full one; empty is 1 to 8, then doubling, and the full rank.
        draws: random bases of the control.
        folds: parts of the train split, each mapped by a map fitted without it.
    """

    runner: ClassVar[str] = "engine.rank.run:run"

    job: Literal["rank"] = "rank"
    map: MapSpec = MapSpec()
    alphas: Amplitudes = ALPHAS
    scale: Literal["vector", "deviation"] = "vector"
    raw_alpha: Literal["fixed", "scaled"] = "fixed"
    basis: Literal["map", "difference"] = "map"
    ks: tuple[int, ...] = ()
    draws: int = Field(default=4, ge=2, le=50)
    folds: int = Field(default=5, ge=2, le=20)

    @field_validator("ks")
    @classmethod
    def _usable_ks(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value and min(value) < 1:
            raise PatchError("There is no such rank.", expected="ranks of 1 or more", given=value)
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _basis_exists(self) -> RankSweep:
        self.map.check(self.component)
        if self.basis == "map" and not self.truncates:
            raise PatchError(
                f"{self.map.describe()} has no ranked output directions.",
                expected="scaled Procrustes without clusters, or the basis of the differences",
                given=f"the map's own basis for {self.map.method}",
                next_step="choose the basis 'difference', or ScaledProcrustes.",
            )
        return self

    @property
    def truncates(self) -> bool:
        """Whether the map has a rank path."""
        return self.map.method == "ScaledProcrustes" and self.map.clusters == 1

    def describe(self) -> str:
        """One line for lists of jobs."""
        site = f"{self.site_text()} at {self.position}"
        return f"{self.target} ← {self.source}, {site}, rank k × α of {NAMES[self.map.method]}"
