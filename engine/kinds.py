"""Every kind of live experiment by its job's name. Specs only: runners are imported when one is run."""

from __future__ import annotations

from engine.ard.spec import Ard
from engine.behaviour.spec import Behaviour
from engine.diff_mining.spec import DiffMining
from engine.difference_lens.spec import DifferenceLens
from engine.heads.map_spec import HeadMap
from engine.heads.spec import HeadSubsets
from engine.lab.experiment import Experiment, experiment_from_json
from engine.lab.repeat import Repeat
from engine.patch_map.spec import PatchMap
from engine.patching.mapped_spec import MappedPatch
from engine.patching.spec import Condition
from engine.rank.spec import RankSweep
from engine.steering.spec import Steering
from engine.subspaces.spec import SubspaceScores
from engine.tokenwise.spec import Tokenwise
from engine.weight_steering.spec import WeightSteering
from engine.z_patching.spec import ZPatching
from engine.z_patching.tokens_spec import ZTokens

__all__ = ["EXPERIMENTS", "SPECS", "experiment_from_json"]

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
    Tokenwise,
    PatchMap,
    DifferenceLens,
    DiffMining,
)
EXPERIMENTS: dict[str, type[Experiment]] = {spec.model_fields["job"].default: spec for spec in SPECS}
