"""Rotated arrangements: each is the permutation that it says, every one is as likely, and they are quick."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from engine.similarity import cka
from engine.similarity import null as cka_null
from engine.similarity.null import _drawn
from engine.similarity.rotated import Rotations, possible, rotations
from engine.stats.resampling import ordered_units, unit_index, unit_tables


def made(
    n: int, groups: np.ndarray | None, roles: np.ndarray | None, draws: int, seed: int = 0
) -> tuple[Rotations, int]:
    unit = unit_index(n, groups)
    tables = unit_tables(ordered_units(unit, roles), unit, roles)
    return rotations(tables, draws, np.random.default_rng(seed)), possible(tables)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_pairing_is_the_permutation_that_it_names(paired: bool, dtype: type) -> None:
    """By the definition, over kinds of 1, 6, 7 and 13 units."""
    rng, counts = np.random.default_rng(0), (1, 6, 7, 13)
    kinds = np.repeat(np.arange(4), counts)[rng.permutation(27)]
    groups = np.repeat(np.arange(27), 2) if paired else None
    kinds = np.repeat(kinds, 2) if paired else kinds
    roles = np.array([f"{kind} {i % 2 if paired else 0}" for i, kind in enumerate(kinds)])
    n = len(kinds)
    k, m = (cka.gram(rng.normal(size=(n, 5))).astype(dtype) for _ in range(2))
    found, ways = made(n, groups, roles, 21)
    assert ways == 6 * 7 * 13
    full, diagonal = found.pair(k, m)
    images = found.permutations()
    assert len(images) == len(full) == len(diagonal) == 21
    for image, numerator, own in zip(images, full, diagonal, strict=True):
        assert (np.sort(image) == np.arange(n)).all()
        assert (roles[image] == roles).all()
        if groups is not None:
            assert (groups[image[0::2]] == groups[image[1::2]]).all()
        moved = m[np.ix_(image, image)]
        assert numerator == pytest.approx(
            (k * moved).sum(), rel=1e-4, abs=1e-5 * float(np.linalg.norm(k * moved))
        )
        assert own == pytest.approx(np.diagonal(k) @ np.diagonal(moved), rel=1e-5)


def test_every_permutation_within_kinds_is_as_likely() -> None:
    roles = np.array(list("aaabb"))
    seen = Counter(
        tuple(image) for seed in range(1200) for image in made(5, None, roles, 2, seed)[0].permutations()
    )
    assert len(seen) == 12
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


def test_unrelated_sides_are_told_apart_at_the_nominal_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With kinds whose means both sides share, which is no shared geometry."""
    monkeypatch.setattr(cka_null, "FEW", 0)
    monkeypatch.setattr(cka_null, "unit_permutations", lambda *_: pytest.fail("these are rotated"))
    roles, trials, hits, p = np.repeat(["a", "b", "c"], [20, 13, 7]), 200, 0, []
    means = np.repeat(3 * np.random.default_rng(1).normal(size=(3, 4)), [20, 13, 7], axis=0)
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        a, b = (cka.gram(means + rng.normal(size=(40, 4))) for _ in range(2))
        null = cka.permutation_null(a, b, roles=roles, n_draws=99, seed=seed)
        assert not null.exact
        hits += bool(null.p <= 0.05)
        p.append(float(null.p))
    assert 0 < hits / trials < 0.096, "0.05 + 3·√(0.05·0.95/200)"
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_the_law_is_that_of_permutations_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, roles = np.random.default_rng(0), np.repeat(["a", "b", "c"], [120, 100, 80])
    x = rng.normal(size=(300, 8))
    grams = [cka.gram(x), cka.gram(x + rng.normal(size=x.shape))]
    quick = cka.permutation_null(*grams, roles=roles, n_draws=2000)
    monkeypatch.setattr(cka_null, "FEW", 301)
    slow = cka.permutation_null(*grams, roles=roles, n_draws=2000)
    assert quick.observed == slow.observed
    width = float(slow.high - slow.low)
    for name in ("mean", "low", "high"):
        assert abs(getattr(quick, name) - getattr(slow, name)) < 0.1 * width, name
    assert quick.p == slow.p == pytest.approx(1 / 2001)


def test_thousand_prompts_in_categories_cost_less_than_half_of_drawing() -> None:
    rng, n = np.random.default_rng(0), 1000
    a, b = (cka.gram(rng.normal(size=(n, 64)).astype(np.float32)) for _ in range(2))
    roles = np.sort(rng.integers(0, 12, n))
    found, _ = made(n, None, roles, 199)
    images = found.permutations()

    def cost(work: object) -> float:
        begun = time.process_time()
        work()  # type: ignore[operator]
        return time.process_time() - begun

    quick = min(cost(lambda: found.pair(a, b)) for _ in range(3))
    drawn = min(cost(lambda: _drawn(a, b, images[:40])) for _ in range(3)) * 199 / 40
    assert quick < drawn / 2
