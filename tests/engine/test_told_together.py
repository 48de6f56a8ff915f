"""Intervals behind titles that tell several things at once, and what a further random direction would do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from app.prompts.tables import token_ratio
from benchmarks.calibration.steering import MEAN, SPEC, WEIGHTS, World, weights, world
from engine.behaviour.numbers import difference
from engine.stats.means import bootstrap_ratio
from engine.steering.report import equal_table
from engine.steering.run import choose, equal_moves, moves
from engine.steering.vectors import Move
from engine.weight_steering.report import against_first


def test_differences_from_the_first_hold_for_all_of_them_at_once() -> None:
    """Bonferroni by hand: each of four intervals at 98.75 %, on the validation prompts."""
    given = weights(0.5, 0.2)(np.random.default_rng(1))
    keys = list(given.equal)
    rows = [row for row in against_first(given.bench, given.equal, keys) if row["figure"] == MEAN.name]
    assert [row["series"] for row in rows] == list(WEIGHTS.series()[1:])
    held = given.bench.members("wanted", "validation")
    for row, key in zip(rows, keys[1:], strict=True):
        pair = (given.equal[keys[0]][MEAN.name][held], given.equal[key][MEAN.name][held])
        groups = given.bench.groups[held]
        alone = difference(*pair, groups, n_boot=WEIGHTS.n_boot, seed=WEIGHTS.seed).interval
        four = difference(*pair, groups, n_boot=WEIGHTS.n_boot, seed=WEIGHTS.seed, level=0.9875).interval
        assert (row["low"], row["high"]) == (four.low, four.high)
        assert four.low < alone.low < alone.high < four.high


def test_one_difference_alone_is_not_widened() -> None:
    given = weights(0.5, 0.2)(np.random.default_rng(1))
    keys = list(given.equal)[:2]
    (row,) = [r for r in against_first(given.bench, given.equal, keys) if r["figure"] == MEAN.name]
    held = given.bench.members("wanted", "validation")
    one, two = (given.equal[key][MEAN.name][held] for key in keys)
    alone = difference(one, two, given.bench.groups[held], n_boot=WEIGHTS.n_boot, seed=WEIGHTS.seed).interval
    assert (row["low"], row["high"]) == (alone.low, alone.high)


def test_a_further_random_direction_stays_between_floor_and_limit() -> None:
    """Student's t by hand: mean ± t₀.₉₇₅ sd √(1 + 1/b)."""
    given: World = world(2.0, 1.0)(np.random.default_rng(3))
    first = given.effects(moves(SPEC))
    alpha = choose(first, SPEC.budget)
    assert alpha is not None
    level = float(first.kl(Move("direction", 0, alpha), "train").mean())
    table, best = equal_table(given.effects(equal_moves(SPEC, first, level, alpha)))
    drawn = table.filter(split="validation", series="random")["shift"].to_numpy()
    count = best["draws"]
    assert len(drawn) == count > 2
    reach = stats.t.ppf(0.975, count - 1) * drawn.std(ddof=1) * np.sqrt(1 + 1 / count)
    assert best["limit"] == pytest.approx(drawn.mean() + reach)
    assert best["floor"] == pytest.approx(drawn.mean() - reach)


def test_the_ratio_of_tokens_has_the_interval_of_few_prompts() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(10, 60, 12).astype(float)
    two = one + rng.integers(-3, 6, 12)
    found = token_ratio(one, two)
    assert found == bootstrap_ratio(two, one)
    left = (two - found.estimate * one).std(ddof=1) / np.sqrt(12) / one.mean()
    # wider than Student's, by how much a bootstrap of 12 is too short and by what skew may hide
    assert found.high - found.low > 2 * stats.t.ppf(0.975, 11) * left
