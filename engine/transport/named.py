"""Transport maps by name: a frozen, comparable description that fits the estimator it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from engine.errors import PatchError
from engine.spec import Lasting, later

if TYPE_CHECKING:
    from engine.transport import TransportMap

USES: dict[str, tuple[str, ...]] = {
    "ScaledProcrustes": ("rank", "shrinkage", "scale", "clusters"),
    "PCAProcrustes": ("rank", "joint", "clusters"),
    "RidgeTransport": ("penalty", "penalty_from", "clusters"),
    "LogitSubspaceRidge": ("directions", "joint", "penalty", "penalty_from"),
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


class MapSpec(Lasting):
    """Which transport map, with what parameters. Those that the map doesn't have are left at their default.

    Attributes:
        method: a name of `USES`.
        rank: components of the Procrustes maps; 0 is the full rank.
        shrinkage: γ of ScaledProcrustes, 0 to 1.
        scale: of ScaledProcrustes: "fit" is the least-squares one, "seed" divides by the whole source's
            energy, whatever the rank: truncated maps come out too short.
        penalty: ridge's λ; None takes the one with the smallest leave-one-out error, by pairs, on train.
        penalty_from: the smallest λ among those.
        directions: size of the logit subspace.
        joint: take the directions of both models' unembeddings, or the principal components of both sides.
        clusters: at most this many maps, one per k-means cluster of the source; 1 is a single map.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "ScaledProcrustes"
    rank: int = Field(default=0, ge=0)
    shrinkage: float = Field(default=0.05, ge=0.0, le=1.0)
    scale: Literal["fit", "seed"] = later("fit")
    penalty: float | None = Field(default=None, gt=0.0)
    penalty_from: float = later(1e-2, ge=1e-12, le=1e6)
    directions: int = Field(default=16, ge=1)
    joint: bool = later(False)
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
        if data.get("penalty") is not None:
            unused |= {"penalty_from"}
        return {key: value for key, value in data.items() if key not in unused}

    def describe(self) -> str:
        """A few words for sentences: "scaled Procrustes, full rank, γ = 0.05"."""
        words = {
            "rank": "full rank" if self.rank == 0 else f"rank {self.rank}",
            "shrinkage": f"γ = {self.shrinkage:g}",
            "scale": "" if self.scale == "fit" else "scaled by the whole source",
            "penalty": "λ by leave-one-out" if self.penalty is None else f"λ = {self.penalty:g}",
            "penalty_from": self._path_words(),
            "directions": f"{self.directions} logit directions",
            "joint": "" if not self.joint else "of both models together",
            "clusters": "" if self.clusters == 1 else f"up to {self.clusters} clusters",
        }
        return ", ".join([NAMES[self.method], *(words[name] for name in USES[self.method] if words[name])])

    def _path_words(self) -> str:
        usual = type(self).model_fields["penalty_from"].default
        if self.penalty is not None or self.penalty_from == usual:
            return ""
        return f"from {self.penalties[0]:g}"

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

    def build(
        self, readout: Readout | None = None, seed: int = 0, source_readout: Readout | None = None
    ) -> TransportMap:
        """The estimator, not fitted.

        Args:
            readout: called by a map that needs the target's unembedding. source_readout: the source's.
            seed: of k-means.

        Raises:
            PatchError: the map needs a readout and none was given.
        """
        from engine.transport import ClusteredTransport

        single = self._single(readout, source_readout)
        return single if self.clusters == 1 else ClusteredTransport(single, self.clusters, seed=seed)

    @property
    def penalties(self) -> tuple[float, ...]:
        """The λ that are tried, ascending; the one that is set."""
        from engine.transport.ridge import penalty_path

        return penalty_path(self.penalty_from) if self.penalty is None else (self.penalty,)

    def _single(self, readout: Readout | None, source_readout: Readout | None) -> TransportMap:
        from engine import transport

        penalties = self.penalties
        if self.method == "ScaledProcrustes":
            return transport.ScaledProcrustes(self.shrinkage, self.rank or None, self.scale)
        if self.method == "PCAProcrustes":
            return transport.PCAProcrustes(self.rank or None, self.joint)
        if self.method == "RidgeTransport":
            return transport.RidgeTransport(penalties)
        if self.method == "LogitSubspaceRidge":
            if readout is None or (self.joint and source_readout is None):
                raise PatchError(
                    "A logit subspace needs the target's unembedding, a joint one the source's as well.",
                    expected="a readout of each",
                    given="none",
                )
            unembedding, gain = readout()
            other, other_gain = source_readout() if self.joint and source_readout else (None, None)
            return transport.LogitSubspaceRidge(
                unembedding, self.directions, self.joint, other, gain, other_gain, alphas=penalties
            )
        return transport.TRANSPORTS[self.method]()
