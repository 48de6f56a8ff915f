"""Two descriptions of one experiment are one: the same hash, so that it runs once and is found again."""

from __future__ import annotations

from typing import Any

import pytest

from engine.behaviour.spec import Behaviour
from engine.errors import PatchError
from engine.heads.map_spec import HeadMap
from engine.heads.spec import HeadSubsets
from engine.kinds import experiment_from_json
from engine.lab.experiment import Experiment
from engine.patching.mapped_spec import MappedPatch
from engine.patching.spec import Condition
from engine.rank.spec import RankSweep
from engine.steering.spec import Group, Steering
from engine.transport.named import MapSpec

PLACE: dict[str, Any] = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 4}
FULL: dict[str, Any] = {**PLACE, "source": "full"}
GROUPS: dict[str, Any] = {"plus": Group(label="right"), "minus": Group(label="wrong")}

EQUAL: dict[str, tuple[Experiment, Experiment]] = {
    "own activation": (Condition(**PLACE, kind="self"), Condition(**FULL, kind="self")),
    "own mean": (Condition(**PLACE, kind="mean"), Condition(**FULL, kind="mean")),
    "read at decision": (
        Condition(**PLACE, position="decision"),
        Condition(**PLACE, position="decision", read_at="decision"),
    ),
    "heads read at decision": (
        HeadMap(target="tuned", source="base", component="head_z", position="decision"),
        HeadMap(target="tuned", source="base", component="head_z", position="decision", read_at="decision"),
    ),
    "difference": (Steering(**PLACE), Steering(**PLACE, leading=3, **GROUPS)),
    "leading": (
        Steering(**PLACE, direction="leading", leading=2),
        Steering(**PLACE, direction="leading", leading=2, **GROUPS),
    ),
    "contrast": (
        Steering(**PLACE, direction="contrast", **GROUPS),
        Steering(**FULL, direction="contrast", leading=2, **GROUPS),
    ),
    "scores": (Behaviour(model="base"), Behaviour(model="base", max_new_tokens=99)),
    "texts": (
        Behaviour(model="base", measures=("text",)),
        Behaviour(model="base", measures=("text",), lead=" ", shared_with="tuned"),
    ),
}

DIFFERENT: dict[str, tuple[Experiment, Experiment]] = {
    "another's activation": (
        Condition(**PLACE, kind="literal"),
        Condition(**FULL, kind="literal"),
    ),
    "own activation of another": (
        Condition(**PLACE, kind="self"),
        Condition(**{**PLACE, "target": "full"}, kind="self"),
    ),
    "read later": (Condition(**PLACE), Condition(**PLACE, read_at="decision")),
    "leading": (
        Steering(**PLACE, direction="leading", leading=1),
        Steering(**PLACE, direction="leading", leading=2),
    ),
    "contrast": (
        Steering(**PLACE, direction="contrast", **GROUPS),
        Steering(**PLACE, direction="contrast", plus=GROUPS["minus"], minus=GROUPS["plus"]),
    ),
    "difference of another": (Steering(**PLACE), Steering(**FULL)),
    "texts": (
        Behaviour(model="base", measures=("text",)),
        Behaviour(model="base", measures=("text",), max_new_tokens=99),
    ),
    "scores": (Behaviour(model="base"), Behaviour(model="base", lead=" ")),
}


@pytest.mark.parametrize("name", EQUAL)
def test_what_has_no_part_in_an_experiment_has_none_in_its_hash(name: str) -> None:
    one, other = EQUAL[name]
    assert one == other
    assert one.content_hash("study") == other.content_hash("study")
    assert experiment_from_json(other.to_json()) == one


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_has_a_part_keeps_experiments_apart(name: str) -> None:
    one, other = DIFFERENT[name]
    assert one.content_hash("study") != other.content_hash("study")


def test_a_patch_without_a_source_needs_none_named() -> None:
    found = Condition(target="tuned", component="resid_post", layer=4, kind="mean")  # type: ignore[call-arg]
    assert found.models() == ("tuned",)
    assert found.describe() == "tuned, resid_post@4 at last_content, mean"
    with pytest.raises(PatchError, match="source"):
        Condition.from_json({"target": "tuned", "component": "resid_post", "layer": 4, "kind": "raw"})


@pytest.mark.parametrize("kind", [MappedPatch, RankSweep])
def test_a_logit_subspace_is_refused_among_head_values_of_the_stream_s_width(kind: type[Experiment]) -> None:
    """8 heads of width 16 are as wide as a stream of 128, and still no coordinates of it."""
    asked = {**PLACE, "component": "head_z", "map": MapSpec(method="LogitSubspaceRidge")}
    with pytest.raises(
        PatchError, match=r"LogitSubspaceRidge \(ridge .*\) is not defined at head_z: .* residual stream"
    ):
        kind(**asked)
    basis = {"basis": "difference"} if kind is RankSweep else {}
    kind(**{**asked, "component": "attn_out", **basis})
    kind(**{**asked, "map": MapSpec(method="RidgeTransport"), **basis})


def test_heads_of_a_block_are_read_once_too() -> None:
    asked = {**PLACE, "component": "head_z", "position": "decision"}
    assert HeadSubsets(**asked) == HeadSubsets(**asked, read_at="decision")


def test_mapped_patches_and_their_maps_keep_what_they_were_asked() -> None:
    assert MapSpec(method="MeanShift", shrinkage=0.3, rank=4) == MapSpec(method="MeanShift")
    assert MapSpec(shrinkage=0.3) != MapSpec()
    with pytest.raises(PatchError, match="no such transport map"):
        MapSpec(method="Magic")
    ridge = MapSpec(method="RidgeTransport", penalty=3.0, clusters=2)
    wanted = MappedPatch(**PLACE, alphas=(1.5, 0.5), map=ridge)
    assert wanted.alphas == (0.5, 1.0, 1.5)
    back = experiment_from_json(wanted.to_json())
    assert back == wanted
    assert back.content_hash("f") == wanted.content_hash("f")
    assert wanted.content_hash("f") != wanted.model_copy(update={"seed": 1}).content_hash("f")
    assert "ridge, λ = 3, up to 2 clusters" in wanted.describe()
    assert [MappedPatch(**{**PLACE, "layer": i}).borrowed(8) for i in (0, 5)] == [4, 1]
