"""The one list of analyses, in the order of the report; within a section of the menu, in its order too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.ard.analysis import ARD
from app.behaviour.analysis import BEHAVIOUR
from app.bridge.analysis import BRIDGE
from app.diff_mining.analysis import DIFF_MINING
from app.difference_lens.analysis import DIFFERENCE_LENS
from app.frame.analysis import Analysis, Kind, install
from app.geometry.analysis import GEOMETRY
from app.heads.analysis import HEADS
from app.overview.analysis import ABOUT, OVERVIEW
from app.patch_map.analysis import PATCH_MAP
from app.patching.analysis import PATCHING
from app.principal_differences.analysis import PRINCIPAL_DIFFERENCES
from app.prompts.analysis import PROMPTS
from app.rank.analysis import RANK
from app.residual_updates.analysis import RESIDUAL_UPDATES
from app.similarity.analysis import SIMILARITY
from app.steering.analysis import STEERING
from app.subspaces.analysis import SUBSPACES
from app.synthesis.analysis import SYNTHESIS
from app.tokenwise.analysis import TOKENWISE
from app.transport.analysis import TRANSPORT
from app.weight_steering.analysis import WEIGHT_STEERING
from app.weights.analysis import WEIGHTS
from app.z_patching.analysis import Z_PATCHING
from engine.errors import PatchError

ANALYSES: tuple[Analysis, ...] = (
    OVERVIEW,
    ABOUT,
    PROMPTS,
    SIMILARITY,
    RESIDUAL_UPDATES,
    TRANSPORT,
    PRINCIPAL_DIFFERENCES,
    TOKENWISE,
    DIFFERENCE_LENS,
    DIFF_MINING,
    PATCH_MAP,
    PATCHING,
    RANK,
    STEERING,
    HEADS,
    BEHAVIOUR,
    GEOMETRY,
    Z_PATCHING,
    ARD,
    BRIDGE,
    SYNTHESIS,
    WEIGHTS,
    WEIGHT_STEERING,
    SUBSPACES,
)
KINDS: tuple[Kind, ...] = tuple(kind for one in ANALYSES for kind in one.kinds)
install(ANALYSES)


def kind_of(condition: Mapping[str, Any]) -> Kind:
    """The kind of a stored condition; PatchError for one that this version doesn't know."""
    job = condition.get("job", "patch")
    for kind in KINDS:
        if job in kind.jobs:
            return kind
    raise PatchError(
        "This run is of a kind that has no page here.",
        expected=", ".join(job for kind in KINDS for job in kind.jobs),
        given=repr(job),
        next_step="open the store with the version that ran it.",
    )
