"""Captions state the settings that were used."""

from __future__ import annotations

from typing import Any

import pytest

from app.ard.words import RULES, sorted_title
from app.patching.summary import _level, top
from app.z_patching.words import basis
from engine.ard.spectrum import OUTLYING

FIT = {"layer": 2, "run_id": "0123456789", "found": "bimodal", "under": 3, "seen": 0}


def test_dimensions_are_told_by_the_rule_that_counted_them() -> None:
    said = basis({"basis": "ard"}, {"fits": [FIT | {"rule": "outlier"}]})
    assert f"3 dimensions under the threshold ({OUTLYING} robust sd below the median)" in said
    older = basis({"basis": "ard"}, {"fits": [FIT | {"under": 1}]})
    assert "1 dimension under its threshold" in older, "a run of before doesn't say by which rule"
    assert "Gaussian" not in said + older


@pytest.mark.parametrize("rule", ["outlier", "mixture"])
def test_one_gaussian_is_said_of_mixtures_alone(rule: str) -> None:
    said = sorted_title(0, 8, float("-inf"), rule)
    assert ("one Gaussian" in said) == (rule == "mixture")
    assert (RULES[rule] in said) == (rule != "mixture")


@pytest.mark.parametrize(
    ("levels", "said"), [([], "95 %"), ([0.95], "95 %"), ([0.9, 0.9], "90 %"), ([0.95, 0.9], "90 or 95 %")]
)
def test_the_level_is_the_runs_own(levels: list[float], said: str) -> None:
    runs: list[Any] = [({"level": level}, {}) for level in levels]
    assert _level(runs) == said


def test_the_order_of_the_top_results_is_told_as_it_is() -> None:
    from app.patching import table as patch_table

    rows = patch_table.table([])
    assert "gain_train" in rows.columns, "what `ranked` sorts by"
    assert top([]).caption.startswith("In the order of ΔKL on the train prompts")
