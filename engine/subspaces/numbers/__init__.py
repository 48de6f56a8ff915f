"""Which named subspace of the stream does a weight change use? Candidates, scores, and exact nulls.

Importing the package registers the built-in candidates; `@candidate` adds one's own.
"""

from __future__ import annotations

from engine.subspaces.numbers import ceilings, circuits, clean, persona, weights
from engine.subspaces.numbers.across import across
from engine.subspaces.numbers.inputs import Delta, Inputs, Target, per_layer, silu
from engine.subspaces.numbers.linear import RANK_TOLERANCE
from engine.subspaces.numbers.ranks import at_ranks
from engine.subspaces.numbers.registry import (
    REGISTRY,
    Candidate,
    Description,
    Registry,
    candidate,
    definitions,
    registering_in,
)
from engine.subspaces.numbers.scores import AtRank, LeftOut, Scores
from engine.subspaces.numbers.sweep import Prepared, prepare, prepare_all, sweep
from engine.subspaces.numbers.words import Conclusion, Stability, conclude, kendall_w, stability
from engine.subspaces.numbers.workspace import Workspace

BUILT_IN = (weights, circuits, clean, persona, ceilings)

__all__ = [
    "BUILT_IN",
    "RANK_TOLERANCE",
    "REGISTRY",
    "AtRank",
    "Candidate",
    "Conclusion",
    "Delta",
    "Description",
    "Inputs",
    "LeftOut",
    "Prepared",
    "Registry",
    "Scores",
    "Stability",
    "Target",
    "Workspace",
    "across",
    "at_ranks",
    "candidate",
    "conclude",
    "definitions",
    "kendall_w",
    "per_layer",
    "prepare",
    "prepare_all",
    "registering_in",
    "silu",
    "stability",
    "sweep",
]
