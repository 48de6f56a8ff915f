"""How long an experiment is said to take: by earlier runs of its kind, else by the demo's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import tiny
from tiny_study import save_model, write_study

from app.analyses import HEADS
from app.build.build import build
from app.frame import durations, reruns
from engine.heads.map_spec import HeadMap
from engine.lab.experiment import Experiment
from engine.lab.repeat import Repeat
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.models.taps import taps
from engine.passes.patch_engine import PatchEngine
from engine.patching.spec import Condition
from engine.study.study import Study

PLACE: dict[str, Any] = {"target": "tuned", "source": "base"}
PATCH: Experiment = Condition(**PLACE, component="resid_post", layer=1)
MAP: Experiment = HeadMap(**PLACE, component="head_z")
RUNS: durations.Runs = [
    ({"job": "patch"}, {"seconds": 2.0}),
    ({"job": "patch"}, {"seconds": 40.0}),
    ({}, {"seconds": 4.0}),  # an old condition without a job is a patch
    ({"job": "head_map"}, {"seconds": None}),  # kept before times were
]


def test_a_run_takes_the_median_of_earlier_ones_of_its_kind() -> None:
    assert durations.seconds([PATCH], RUNS) == 4.0
    assert durations.seconds([PATCH, PATCH, PATCH], RUNS) == 12.0
    assert durations.seconds([PATCH, MAP], RUNS) is None
    assert durations.seconds([], RUNS) is None
    assert durations.told([PATCH], RUNS) == "About 4 s, judged by earlier runs of this kind in this store."


def test_without_one_it_is_told_what_the_demo_took() -> None:
    told = durations.told([MAP, MAP], RUNS)
    (kind,) = HEADS.kinds
    took = kind.jobs["head_map"]
    assert took is not None
    assert told.startswith(f"About {round(durations.LOADING + 2 * took)} s on the demo")
    assert durations.told([Repeat(of=PATCH.to_json())], RUNS) == ""


@pytest.mark.parametrize(
    ("value", "said"), [(0.2, "1 s"), (4.4, "4 s"), (89.4, "89 s"), (150, "2 min"), (5400, "1.5 h")]
)
def test_durations_are_written_in_whole_units(value: float, said: str) -> None:
    assert durations.written(value) == said


def times(factor: float) -> durations.Slower:
    """Patches of `tuned` take so many times longer."""
    return lambda condition: factor if condition.get("target") == "tuned" else 1.0


def test_a_run_of_another_model_counts_by_how_much_slower_that_one_is() -> None:
    runs: durations.Runs = [({"job": "patch", "target": "base"}, {"seconds": 3.0})]
    assert durations.seconds([PATCH], runs, times(8.0)) == 24.0
    runs = [*runs, ({"job": "patch", "target": "tuned"}, {"seconds": 32.0})]
    assert durations.seconds([PATCH], runs, times(8.0)) == 8 * (3.0 + 4.0) / 2


def test_the_demos_time_is_told_as_longer_where_whole_prompts_run_again() -> None:
    (kind,) = HEADS.kinds
    took = kind.jobs["head_map"]
    assert took is not None
    told = durations.told([MAP], [], times(8.0))
    assert told.startswith(f"About {durations.written(durations.LOADING + 8 * took)}: what the demo takes")
    assert "times 8, since this model's patches run whole prompts again" in told
    assert "whole prompts" not in durations.told([MAP], [], times(1.2))


def rows_run(packs: bool, ids: list[list[int]], at: list[int], conditions: int) -> float:
    """Tokens that go through the blocks for one patch behind half of them, the unpatched run included."""
    lm = from_parts(tiny("qwen3", num_hidden_layers=4, vocab_size=500))
    lm.taps = taps(lm.model, replace(lm.taps.family, packs=packs))
    seen = []
    for layer in lm.taps.layers:  # what every block's MLP reads
        layer.mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0].numel() // lm.taps.d))
    engine = PatchEngine(lm, ids, at, read_at="decision")
    site = Site("resid_post", 1)
    vectors = engine.activations(site).roll(1, 0)[None].repeat(conditions, 1, 1)
    engine.sweep(site, vectors, n_conditions=conditions)
    return float(sum(seen))


def test_how_much_slower_is_what_is_counted_in_the_blocks(tmp_path: Path) -> None:
    for name, family in (("base", "qwen3"), ("tuned", "gptj")):
        save_model(tmp_path / name, family)
    store = build(Study.load(write_study(tmp_path, pairs=4, positions=["decision", "last_content"])),
                  tmp_path / "store", quiet=True)  # fmt: skip
    assert reruns.whole(store) == {"tuned"}
    assert {name: info["patches"] for name, info in store.manifest["models"].items()} == {
        "base": "packed", "tuned": "whole"
    }  # fmt: skip
    ids = store.tokens("tuned")["token_ids"].to_list()
    at = store.table("positions-tuned")["last_content"].list.first().to_list()
    for read_at in ("decision", "patched"):
        patch = Condition(
            **PLACE, component="resid_post", layer=1, position="last_content", alphas=(0.5, 1.0, 2.0),
            read_at=read_at,
        )  # fmt: skip
        own = ids if read_at == "decision" else [row[: end + 1] for row, end in zip(ids, at, strict=True)]
        counted = rows_run(False, own, at, 3) / rows_run(True, own, at, 3)
        assert reruns.slower(store, patch.to_json()) == pytest.approx(counted, rel=0.05)
    swapped = patch.model_copy(update={"target": "base", "source": "tuned"})
    assert reruns.slower(store, swapped.to_json()) == 1.0
    assert reruns.slower(store, {"job": "behaviour", "target": "tuned"}) == 1.0
    most = reruns.slower(store, MAP.to_json() | {"position": "decision", "read_at": "patched"})
    assert most == pytest.approx(sum(map(len, ids)) / len(ids))


def test_stores_that_say_it_in_a_note_alone_are_known(tmp_path: Path) -> None:
    note = "its blocks can't be run on packed tokens: a patch runs whole prompts again from its block on"
    infos = {"old": {"notes": ["x", note]}, "plain": {"notes": []}, "new": {"patches": "packed", "notes": []}}
    assert reruns.whole(SimpleNamespace(manifest={"models": infos})) == {"old"}  # type: ignore[arg-type]
