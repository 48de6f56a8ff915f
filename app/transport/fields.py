"""Settings of a transport map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.frame.fields import choice, exponent, number
from app.frame.selection import Fields

METHODS = (
    "ScaledProcrustes",
    "RidgeTransport",
    "PCAProcrustes",
    "LogitSubspaceRidge",
    "MomentMatching",
    "MeanShift",
    "Identity",
)
"""Transport maps offered; per-cluster ones are these with more than one cluster."""


@dataclass(frozen=True)
class MapFields(Fields):
    """`rank` 0 is a map's full rank, `lam` and `lam_from` the decimal logarithms of ridge's λ and of the
    smallest one tried, `q` the directions of the logit subspace; per-cluster maps have more than one of
    `clusters`. `joint`: directions of both models; `map_scale`: how a Procrustes map is scaled."""

    method: str = choice(*METHODS)
    rank: int = number(0, within=lambda facts: (0.0, float(facts.width)))
    shrink: float = number(0.05, 0.0, 1.0)
    lam_mode: str = choice("auto", "set")
    lam: float = number(2.0, -12.0, 12.0)
    lam_from: float = number(-2.0, -12.0, 6.0)
    q: int = number(
        16, within=lambda facts: (1.0, float(facts.width)), usual=lambda facts: min(16, facts.width)
    )
    clusters: int = number(1, 1, 8)
    joint: str = choice("no", "yes")
    map_scale: str = choice("fit", "seed")


def map_changes(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Changes to a selection that make a stored condition's map the selected one."""
    penalty = chosen.get("penalty")
    return {
        "method": chosen["method"],
        "rank": chosen["rank"],
        "shrink": chosen["shrinkage"],
        "lam_mode": "auto" if penalty is None else "set",
        **({} if penalty is None else {"lam": exponent(penalty)}),
        "q": chosen["directions"],
        "clusters": chosen["clusters"],
        "lam_from": exponent(chosen.get("penalty_from", 1e-2)),
        "joint": "yes" if chosen.get("joint") else "no",
        "map_scale": chosen.get("scale", "fit"),
    }
