"""Transport maps by name: a frozen, comparable description that fits the estimator it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.errors import PatchError

if TYPE_CHECKING:
    from engine.transport import TransportMap

USES: dict[str, tuple[str, ...]] = {
    "ScaledProcrustes": ("rank", "shrinkage", "clusters"),
    "PCAProcrustes": ("rank", "clusters"),
    "RidgeTransport": ("penalty", "clusters"),
    "LogitSubspaceRidge": ("directions", "penalty"),
    "MomentMatching": ("clusters",),
    "MeanShift": ("clusters",),
    "Identity": (),
}
"""Maps that can be asked for by name, with the parameters each one has."""

NAMES = {
    "ScaledProcrustes": "scaled Procrustes",
    "PCAProcrustes": "Procrustes of principal components",
    "RidgeTransport": "ridge",
    "LogitSubspaceRidge": "ridge in the logit subspace",
    "MomentMatching": "moment matching",
    "MeanShift": "mean shift",
    "Identity": "identity",
}
"""Maps in words."""

NEEDS_STREAM = ("LogitSubspaceRidge",)
"""Maps of what an unembedding reads: the stream's coordinates, not head values even of the same width."""

SAME_WIDTH = ("LogitSubspaceRidge", "MomentMatching", "MeanShift", "Identity")
"""Maps between activations of one width only."""

Readout = Callable[[], tuple[np.ndarray, np.ndarray]]
"""The target's unembedding (V, d) and its final norm's gain (d,)."""


class MapSpec(BaseModel):
    """Which transport map, with what parameters. Those that the map doesn't have are left at their default.

    Attributes:
        method: a name of `USES`.
        rank: components of the Procrustes maps; 0 is the full rank.
        shrinkage: γ of ScaledProcrustes, 0 to 1.
        penalty: ridge's λ; None takes the one with the smallest leave-one-out error, by pairs, on train.
        directions: size of the logit subspace.
        clusters: at most this many maps, one per k-means cluster of the source; 1 is a single map.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "ScaledProcrustes"
    rank: int = Field(default=0, ge=0)
    shrinkage: float = Field(default=0.05, ge=0.0, le=1.0)
    penalty: float | None = Field(default=None, gt=0.0)
    directions: int = Field(default=16, ge=1)
    clusters: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _only_what_the_map_has(cls, data: Any) -> Any:
        """Two descriptions of one map are equal, so that a result is found again."""
        if not isinstance(data, Mapping):
            return data
        method = data.get("method", "ScaledProcrustes")
        if method not in USES:
            raise PatchError("There is no such transport map.", expected=", ".join(USES), given=repr(method))
        unused = (set(cls.model_fields) - {"method"}) - set(USES[method])
        return {key: value for key, value in data.items() if key not in unused}

    def describe(self) -> str:
        """A few words for sentences: "scaled Procrustes, full rank, γ = 0.05"."""
        words = {
            "rank": "full rank" if self.rank == 0 else f"rank {self.rank}",
            "shrinkage": f"γ = {self.shrinkage:g}",
            "penalty": "λ by leave-one-out" if self.penalty is None else f"λ = {self.penalty:g}",
            "directions": f"{self.directions} logit directions",
            "clusters": "" if self.clusters == 1 else f"up to {self.clusters} clusters",
        }
        return ", ".join([NAMES[self.method], *(words[name] for name in USES[self.method] if words[name])])

    def fits(self, component: str) -> bool:
        """Whether the map is defined at a component whatever the widths."""
        return component != "head_z" or self.method not in NEEDS_STREAM

    def check(self, component: str) -> None:
        """Raises PatchError where the map is not defined at a component."""
        if not self.fits(component):
            raise PatchError(
                f"{self.method} ({NAMES[self.method]}) is not defined at {component}: the unembedding reads "
                "the residual stream, not head values.",
                expected="a site of the stream, or another map",
                given=f"{self.method} at {component}",
                next_step="choose another site, or RidgeTransport, which fits everywhere.",
            )

    def build(self, readout: Readout | None = None, seed: int = 0) -> TransportMap:
        """The estimator, not fitted.

        Args:
            readout: called by a map that needs the target's unembedding.
            seed: of k-means.

        Raises:
            PatchError: the map needs a readout and none was given.
        """
        from engine.transport import ClusteredTransport

        single = self._single(readout)
        return single if self.clusters == 1 else ClusteredTransport(single, self.clusters, seed=seed)

    def _single(self, readout: Readout | None) -> TransportMap:
        from engine import transport

        penalties = transport.DEFAULT_ALPHAS if self.penalty is None else (self.penalty,)
        if self.method == "ScaledProcrustes":
            return transport.ScaledProcrustes(self.shrinkage, self.rank or None)
        if self.method == "PCAProcrustes":
            return transport.PCAProcrustes(self.rank or None)
        if self.method == "RidgeTransport":
            return transport.RidgeTransport(penalties)
        if self.method == "LogitSubspaceRidge":
            if readout is None:
                raise PatchError(
                    "A logit subspace needs the target's unembedding.", expected="a readout", given="none"
                )
            unembedding, gain = readout()
            return transport.LogitSubspaceRidge(unembedding, self.directions, gain=gain, alphas=penalties)
        return transport.TRANSPORTS[self.method]()
