"""The calibration's own gate: what it does at a true rate, exactly; and the table that is read back."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import GATE, LEVEL, PLANTED, Entry, Measured, measure, measure_case
from benchmarks.calibration.cases import measured, undecided
from benchmarks.calibration.gate import MISSED, WRONG, Gate
from benchmarks.calibration.page import END, START, footer, read, table, written

DAY = "2030-01-02"


def said_at(rate: float, name: str = "coin") -> Entry:
    return Entry(name, "heads", lambda p: p < rate, {"fair": lambda rng: rng.random()}, lambda _: 0.0)


def test_at_seven_per_cent_it_fails_and_at_its_level_it_passes() -> None:
    """The gate's promise: 95 % either way, and everything decided within 3000 repeats."""
    assert 1 - GATE.operating(WRONG).passes >= 0.95
    assert GATE.operating(LEVEL).passes >= 0.99
    assert GATE.operating(0.03).passes > 1 - 1e-6
    assert GATE.operating(0.10).passes < 1e-3
    assert GATE.stages[-1] == 3000
    assert GATE.least[-1] == GATE.most[-1] + 1


def test_a_higher_rate_never_passes_more_easily() -> None:
    passes = [GATE.operating(rate).passes for rate in np.linspace(0.0, 0.2, 41)]
    assert all(a >= b for a, b in itertools.pairwise(passes))
    assert GATE.operating(WRONG).passes <= MISSED


def test_few_repeats_where_the_rate_is_low_and_many_near_the_level() -> None:
    assert GATE.verdict(0, 200) is True
    assert GATE.operating(0.0).repeats == GATE.stages[0]
    assert GATE.operating(0.01).repeats < 150
    assert 900 < GATE.operating(LEVEL).repeats < 1200


def test_operating_characteristic_is_that_of_all_sequences() -> None:
    """Every outcome of six tosses, judged one after another, by hand."""
    gate, rate = Gate((2, 4, 6), (-1, 0, 1), (2, 3, 2)), 0.3
    passes = repeats = 0.0
    for tosses in itertools.product((0, 1), repeat=6):
        chance = math.prod(rate if toss else 1 - rate for toss in tosses)
        for n in gate.stages:
            verdict = gate.verdict(sum(tosses[:n]), n)
            if verdict is not None:
                passes += chance * verdict
                repeats += chance * n
                break
    found = gate.operating(rate)
    assert found.passes == pytest.approx(passes, abs=1e-12)
    assert found.repeats == pytest.approx(repeats, abs=1e-12)


def test_one_stage_is_the_plain_binomial_test() -> None:
    gate = Gate.of(stages=(200,), wrong=0.15)
    below = sum(math.comb(200, i) * 0.15**i * 0.85 ** (200 - i) for i in range(gate.most[0] + 1))
    assert (
        below
        <= MISSED
        < below + math.comb(200, gate.most[0] + 1) * 0.15 ** (gate.most[0] + 1) * 0.85 ** (199 - gate.most[0])
    )


def test_simulated_rates_pass_as_often_as_computed() -> None:
    rng, runs = np.random.default_rng(5), 4000
    said = np.cumsum(rng.random((runs, GATE.stages[-1])) < 0.06, axis=1)
    open_, passed = np.ones(runs, dtype=bool), 0
    for n, most, least in zip(GATE.stages, GATE.most, GATE.least, strict=True):
        count = said[:, n - 1]
        passed += int((open_ & (count <= most)).sum())
        open_ &= (count > most) & (count < least)
    assert not open_.any()
    assert passed / runs == pytest.approx(GATE.operating(0.06).passes, abs=0.03)  # 3.8 sd


@pytest.mark.parametrize(("rate", "passes"), [(0.0, True), (0.03, True), (0.07, False), (0.10, False)])
def test_a_planted_rule_is_judged(rate: float, passes: bool) -> None:
    null, plant = measure(said_at(rate))
    assert null.passes is passes
    assert null.holds is passes
    assert null.repeats in GATE.stages
    assert plant.case == PLANTED
    assert (plant.said, plant.repeats) == ((200, 200) if rate else (0, 200))


def test_no_draw_depends_on_other_entries_or_on_the_order() -> None:
    two = Entry(
        "coin",
        "heads",
        lambda p: p < 0.5,
        {"other": lambda rng: rng.random(), "fair": lambda rng: rng.random()},
        lambda _: 0.0,
    )
    assert measure_case(two, "fair", 50) == measure_case(said_at(0.5), "fair", 50)
    assert measure_case(two, "other", 50).said != measure_case(two, "fair", 50).said
    assert measure_case(said_at(0.5), "fair", 50).said != measure_case(said_at(0.5, "b"), "fair", 50).said


def test_workers_change_nothing() -> None:
    from benchmarks.calibration import ENTRIES

    some = [(e.name, case) for e in ENTRIES if e.name in ("Token counts", "Leakage") for case in e.cases]
    assert list(measured(some, 5, 0, 2)) == list(measured(some, 5, 0, 1))


def test_a_table_is_read_back_and_keeps_what_was_not_measured() -> None:
    one, two = said_at(0.01, "one"), said_at(0.10, "two")
    old = [Measured("one", "fair", 2, 200), Measured("one", PLANTED, 150, 200)]
    old += [Measured("gone", "fair", 0, 100), Measured("gone", PLANTED, 200, 200)]
    page = f"words\n{START}{table([one, said_at(0.1, 'gone')], old)}{END}more\n"
    assert read(page) == old
    new = [Measured("two", "fair", 36, 200), Measured("two", PLANTED, 200, 200)]
    text = written(page, [one, two], new, DAY)
    assert text.startswith("words\n")
    assert text.endswith(f"{END}more\n")
    assert read(text) == [*old[:2], *new]
    assert "| 36 of 200: 18.0 % (13.3 to 23.9) **fails** |" in text
    assert "| 2 of 200: 1.0 % (0.3 to 3.6) |" in text


def test_what_a_table_does_not_decide_is_drawn() -> None:
    """Rows that aren't there, and those between the bounds; power has no gate."""
    one, two = said_at(0.05, "one"), said_at(0.05, "two")
    assert list(one.cases)[-1] == PLANTED
    told = [Measured("one", "fair", 5, 100), Measured("one", PLANTED, 150, 200)]
    assert ("one", "fair") in undecided([one], told)
    assert ("one", PLANTED) not in undecided([one], told)
    told[0] = Measured("one", "fair", 0, 100)
    assert ("one", "fair") not in undecided([one], told)
    assert undecided([two], told) == [("two", case) for case in two.cases]
    page = f"{START}{table([one], told)}{END}"
    text = written(page, [one], [Measured("one", "fair", 1, 100)], DAY)
    assert read(text) == [Measured("one", "fair", 1, 100), told[1]], "only the row that was drawn is new"


def test_the_footer_counts_its_rows() -> None:
    rows = [
        Measured("one", "a", 0, 100),
        Measured("one", "b", 8, 200),
        Measured("one", PLANTED, 200, 200),
        Measured("two", "c", 180, 3000),
        Measured("three", "d", 220, 3000),
    ]
    assert footer(rows, DAY) == (
        "Last written 2030-01-02: 3 conclusions on 4 nulls, 100 to 3000 repeats each. 2 pass the gate. "
        "1 fail: three where d, 7.3 % (6.5 to 8.3). Undecided after their repeats, as marked: 1. "
        "Intervals above 5 %: 2, two where c, 6.0 % (5.2 to 6.9); three where d, 7.3 % (6.5 to 8.3).\n"
    )
    assert footer(rows[:1], DAY).endswith(
        "100 repeats each. All pass the gate. No interval lies above 5 %.\n"
    )


def test_the_page_speaks_of_its_rows_and_of_this_gate() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "calibration.md").read_text()
    day = page.split("Last written ")[1].split(":")[0]
    assert footer(read(page), day) in page
    for n, most, least in GATE.rows():
        assert f"| {n} | {most} | {least} |" in page
    for rate in (0.01, 0.03, 0.05, 0.06, 0.07, 0.1):
        found = GATE.operating(rate)
        assert f"| {100 * rate:.0f} % | {100 * found.passes:.1f} % | {found.repeats:.0f} |" in page
