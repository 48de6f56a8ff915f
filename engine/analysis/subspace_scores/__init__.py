"""Which named subspace of the stream does a weight change use? Candidates, scores, and exact nulls.

Importing the package registers the built-in candidates; `@candidate` adds one's own.
"""

from __future__ import annotations

from engine.analysis.subspace_scores import ceilings, circuits, clean, persona, weights
from engine.analysis.subspace_scores.across import across
from engine.analysis.subspace_scores.inputs import Delta, Inputs, Target, per_layer, silu
from engine.analysis.subspace_scores.linear import RANK_TOLERANCE
from engine.analysis.subspace_scores.ranks import at_ranks
from engine.analysis.subspace_scores.registry import (
    REGISTRY,
    Candidate,
    Description,
    Registry,
    candidate,
    definitions,
    registering_in,
)
from engine.analysis.subspace_scores.scores import AtRank, LeftOut, Scores
from engine.analysis.subspace_scores.sweep import Prepared, prepare, prepare_all, sweep
from engine.analysis.subspace_scores.words import Conclusion, Stability, conclude, kendall_w, stability
from engine.analysis.subspace_scores.workspace import Workspace

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
