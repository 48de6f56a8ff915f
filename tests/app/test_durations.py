"""How long an experiment is said to take: by earlier runs of its kind, else by the demo's."""

from __future__ import annotations

from typing import Any

import pytest

from app.analyses import HEADS
from app.frame import durations
from engine.heads.map_spec import HeadMap
from engine.lab.experiment import Experiment
from engine.lab.repeat import Repeat
from engine.patching.spec import Condition

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
