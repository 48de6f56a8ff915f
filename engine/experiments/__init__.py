"""Every kind of live experiment by its job's name. Specs only: runners are imported when one is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.condition import Condition
from engine.experiment import Experiment, unknown_job
from engine.experiments.ard import Ard
from engine.experiments.behaviour import Behaviour
from engine.experiments.head_map import HeadMap
from engine.experiments.heads import HeadSubsets
from engine.experiments.mapped import MappedPatch
from engine.experiments.rank import RankSweep
from engine.experiments.repeat import Repeat
from engine.experiments.steering import Steering
from engine.experiments.subspace_scores import SubspaceScores
from engine.experiments.weight_steering import WeightSteering
from engine.experiments.z_patching import ZPatching
from engine.experiments.z_tokens import ZTokens

SPECS: tuple[type[Experiment], ...] = (
    Condition,
    MappedPatch,
    RankSweep,
    Steering,
    HeadSubsets,
    HeadMap,
    Behaviour,
    WeightSteering,
    SubspaceScores,
    Ard,
    Repeat,
    ZPatching,
    ZTokens,
)
EXPERIMENTS: dict[str, type[Experiment]] = {spec.model_fields["job"].default: spec for spec in SPECS}


def experiment_from_json(data: Mapping[str, Any]) -> Experiment:
    """The experiment that `to_json` described; PatchError for an unknown job or an unusable key."""
    job = data.get("job", "patch")
    if job not in EXPERIMENTS:
        raise unknown_job(job, tuple(EXPERIMENTS))
    return EXPERIMENTS[job].from_json(data)
