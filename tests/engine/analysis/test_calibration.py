"""Every worded conclusion: its nulls hold in a few repeats, its plants are found, the page is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import ENTRIES, PLANTED, Entry, Measured, measure
from benchmarks.calibration.page import FAILS, read, table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "calibration.md"
SLOW = {
    *("Lengthscales", "Collapse", "CKA: models", "CKA: pairing", "CKA: languages", "Behaviour: clearest"),
    *("Mapped: saves", "Mapped: best site", "Rank: map", "Rank: swap", "Transport: places"),
    *("Transport: best place", "Weights: directions", "Rounding: rank", "Rounding: CKA", "Rounding: map"),
}
"""Entries of which a repeat takes a tenth of a second or more: fits, and bootstraps of whole curves."""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_nulls_hold_and_plants_are_found(entry: Entry) -> None:
    repeats = 3 if entry.name in SLOW else 10
    for one in measure(entry, repeats, seed=1):
        if one.case == PLANTED:
            # Powers are 70 % and more: fewer than a quarter of ten repeats is a matter of 0.2 %.
            assert 4 * one.said >= one.repeats, one
        else:
            assert one.holds, one


def test_a_rule_that_is_often_wrong_fails_and_one_at_its_level_does_not() -> None:
    def entry(level: float) -> Entry:
        return Entry("coin", "heads", lambda p: p < level, {"fair": lambda rng: rng.random()}, lambda _: 0.0)

    good, plant = measure(entry(0.05), 400)
    assert good.holds
    assert plant.said == plant.repeats == 400
    bad, _ = measure(entry(0.15), 400)
    assert not bad.holds
    assert bad.rate.low > 0.05
    assert FAILS in table([entry(0.15)], [bad, plant])
    again, _ = measure(entry(0.15), 400)
    assert again == bad
    other, _ = measure(entry(0.15), 400, seed=1)
    assert other != bad


def test_a_count_that_five_per_cent_can_give_holds() -> None:
    assert Measured("x", "y", 18, 200).holds  # 9 % of 200: probability 1.2 %
    assert not Measured("x", "y", 23, 200).holds


def test_names_are_unique_and_every_null_draws_something_new() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names))
    rng = np.random.default_rng(0)
    for entry in ENTRIES:
        assert entry.nulls
        assert PLANTED not in entry.nulls
        assert repr(entry.planted(rng)) != "None"


def test_the_page_shows_every_conclusion_and_null() -> None:
    text = PAGE.read_text()
    for entry in ENTRIES:
        for case in entry.nulls:
            assert f"| {entry.name} | “{entry.sentence}” | {case} |" in text
    assert text.count(" | “") == sum(len(entry.nulls) for entry in ENTRIES)
    assert not [one for one in read(text) if one.case != PLANTED and one.passes is False]
    assert FAILS not in text
