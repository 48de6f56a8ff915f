"""Separation and language energy against loops over dense projectors, with nulls and planted structure."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import AnalysisError
from engine.geometry import separation as sep
from engine.geometry import z as sp
from engine.geometry.language_energy import language_energy
from engine.stats.uncertainty import energy_fraction


def texts(
    seed: int, n: int = 14, d: int = 32, *, shared: np.ndarray | None = None, strength: float = 0.0
) -> sep.Problems:
    """Problems with content and noise in every direction; content is stronger inside `shared`."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, d))
    if shared is not None:
        content += strength * rng.normal(size=(n, shared.shape[1])) @ shared.T
    language = rng.normal(size=d)
    one, two = content + rng.normal(size=(n, d)), content + language + rng.normal(size=(n, d))
    return sep.Problems.of(one, two)


def looped_ratio(one: np.ndarray, two: np.ndarray, projector: np.ndarray) -> float:
    """The definition, one pair after another, through a dense projector."""
    n = len(one)
    across = [np.linalg.norm(projector @ (one[i] - two[i])) for i in range(n)]
    within = [
        np.linalg.norm(projector @ (side[i] - side[j]))
        for side in (one, two)
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    return float(np.mean(across) / np.mean(within))


@pytest.mark.parametrize("nested", [True, False])
def test_ratios_equal_loops_over_dense_projectors(nested: bool) -> None:
    problems = texts(0, n=6, d=12)
    wide = sp.random_basis(12, 12, 3)
    bases = wide if nested else {k: sp.random_basis(12, k, k) for k in (2, 5, 11)}
    ks, inside, outside = sep.separation_ratios(problems, bases)
    for at, k in enumerate(ks):
        basis = wide[:, :k] if isinstance(bases, np.ndarray) else bases[k]
        projector = basis @ basis.T
        assert inside[at] == pytest.approx(looped_ratio(problems.one, problems.two, projector), rel=1e-9)
        if k < 12:  # squared distances outside are differences: half the digits where little is left
            wanted = looped_ratio(problems.one, problems.two, np.eye(12) - projector)
            assert outside[at] == pytest.approx(wanted, rel=1e-6)
        else:
            assert np.isnan(outside[at])
    if nested:
        np.testing.assert_allclose(
            sep.inside_ratios(problems, wide, (2, 5, 12)), inside[[1, 4, 11]], rtol=1e-12
        )
    whole = looped_ratio(problems.one, problems.two, np.eye(12))
    assert float(problems.whole.ratio()) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(5, 40), (5, 14), (20, 16)])  # d beyond, about and within the span
def test_random_ratios_have_the_law_of_explicit_random_subspaces(n: int, d: int) -> None:
    problems, ks, draws = texts(1, n=n, d=d), (1, 3, 8), 1500
    fast = sep.random_ratios(problems, ks, draws=draws, seed=0)
    slow = np.array([sep.separation_ratios(problems, sp.random_basis(d, 8, s))[1] for s in range(draws)])
    slow = slow[:, np.array(ks) - 1]
    for at in range(len(ks)):
        both = np.sort(np.concatenate([fast[:, at], slow[:, at]]))
        gap = np.abs(
            np.searchsorted(np.sort(fast[:, at]), both, "right")
            - np.searchsorted(np.sort(slow[:, at]), both, "right")
        ).max()
        # two-sample Kolmogorov-Smirnov at 1e-4: 2.23·√(2/draws)
        assert gap / draws < 2.23 * np.sqrt(2 / draws)


def test_random_frames_are_nested_and_exact_for_the_whole_space() -> None:
    problems = texts(2, n=6, d=10)
    wide = sep.random_ratios(problems, (2, 10), draws=3, seed=5)
    # float32 distances: a relative 1e-6 of squares of centred rows
    np.testing.assert_allclose(wide[:, 1], float(problems.whole.ratio()), rtol=1e-5)
    assert len(np.unique(wide[:, 0])) == 3


def test_intervals_and_pairing_follow_their_definitions() -> None:
    problems = texts(3, n=5, d=9)
    basis = {2: sp.random_basis(9, 2, 0)}
    found = sep.separation(problems, basis, np.ones((200, 1)), n_boot=40, pairings=60, seed=7)
    weights = np.random.default_rng(7).multinomial(5, np.full(5, 0.2), size=40)
    projector = basis[2] @ basis[2].T
    draws = []
    for counts in weights:
        rows = np.repeat(np.arange(5), counts)
        across = [np.linalg.norm(projector @ (problems.one[i] - problems.two[i])) for i in rows]
        within = [
            np.linalg.norm(projector @ (side[i] - side[j]))
            for side in (problems.one, problems.two)
            for i in rows
            for j in rows
            if i != j
        ]
        draws.append(np.mean(across) / np.mean(within) if within else np.nan)
    np.testing.assert_allclose(found.inside.low, np.nanquantile(draws, 0.025), rtol=1e-9)
    np.testing.assert_allclose(found.inside.high, np.nanquantile(draws, 0.975), rtol=1e-9)
    rng = np.random.default_rng(7)
    wrong = [rng.permutation(5) for _ in range(60)]
    observed = np.linalg.norm((problems.one - problems.two) @ projector, axis=1).mean()
    means = [np.linalg.norm((problems.one - problems.two[w]) @ projector, axis=1).mean() for w in wrong]
    below = sum(m <= observed * (1 + 1e-9) for m in means)
    assert found.p_pairing[0] == pytest.approx((1 + below) / 61)
    assert found.p_random[0] == 1.0 if found.inside.estimate[0] >= 1 else 1 / 201


def _verdicts(strength: float, repeats: int) -> tuple[float, float]:
    """Share of repeats in which Z separates, and in which the inequality alone holds."""
    said = simple = 0
    for seed in range(repeats):
        basis = sp.random_basis(32, 6, 10_000 + seed)
        problems = texts(seed, shared=basis, strength=strength)
        random = sep.random_ratios(problems, (6,), seed=seed)
        _, inside, outside = sep.separation_ratios(problems, {6: basis})
        p = sep.rank_p(inside, random)
        asked = sep.separates(inside, outside, p, 0.0)
        kept = sep.scale_p(problems, {6: basis}, inside, asked, seed=seed)
        said += bool(sep.separates(inside, outside, p, kept)[0])
        simple += bool(inside[0] < outside[0])
    return said / repeats, simple / repeats


def test_z_separates_is_rarely_said_of_unrelated_subspaces_and_often_of_planted_ones() -> None:
    repeats = 400
    said, simple = _verdicts(0.0, repeats)
    # 5 % plus three binomial standard errors of the measured rate
    assert said <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert 0.3 < simple < 0.7  # the inequality alone is a coin
    power, _ = _verdicts(3.0, 60)
    assert power > 0.9


def test_pairing_tells_shared_content_from_none() -> None:
    basis = {6: sp.random_basis(32, 6, 1)}
    random = np.ones((200, 1))
    planted = sep.separation(texts(0, shared=basis[6], strength=2.0), basis, random)
    assert planted.p_pairing[0] == 1 / 1000
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):  # languages that share nothing about a problem
        none = sep.Problems.of(rng.normal(size=(10, 32)), rng.normal(size=(10, 32)))
        p.append(sep.separation(none, basis, random, pairings=99, n_boot=2).p_pairing[0])
    rate = np.mean(np.array(p) < 0.05)
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_language_energy_equals_the_energy_fraction_of_every_k() -> None:
    problems = texts(4, n=9, d=20)
    bases = {k: sp.random_basis(20, k, k) for k in (1, 4, 20)}
    found = language_energy(problems, bases)
    for at, k in enumerate(found.ks):
        one = energy_fraction(problems.shift, bases[k])
        assert found.ratio.estimate[at] == pytest.approx(one.ratio, rel=1e-9)
        assert found.p[at] == pytest.approx(one.p, rel=1e-6)
        assert found.low[at] <= 1 <= found.high[at]
    assert found.ratio.estimate[-1] == pytest.approx(1.0)


def test_language_energy_is_calibrated_where_all_shifts_point_one_way_and_finds_a_plant() -> None:
    rng, hits, repeats = np.random.default_rng(0), 0, 400
    for seed in range(repeats):
        one = rng.normal(size=(8, 24))
        problems = sep.Problems.of(one, one + 5 * rng.normal(size=24) + 0.2 * rng.normal(size=(8, 24)))
        basis = {3: sp.random_basis(24, 3, seed)}
        hits += language_energy(problems, basis, n_boot=2).p[0] < 0.05
        if seed < 20:
            inside = sep.Problems.of(one, one + rng.normal(size=3) @ basis[3].T)
            assert language_energy(inside, basis, n_boot=2).p[0] < 1e-6
    assert abs(hits / repeats - 0.05) <= 3 * np.sqrt(0.05 * 0.95 / repeats)


def test_bad_input_is_refused_with_its_reason() -> None:
    problems = texts(0, n=5, d=6)
    basis = sp.random_basis(6, 2, 0)
    same = sep.Problems.of(problems.one, problems.one)
    for call, says in (
        (lambda: sep.Problems.of(problems.one[:3], problems.two[:3]), "n ≥ 4"),
        (lambda: sep.Problems.of(problems.one, np.full((5, 6), np.nan)), "NaN or inf"),
        (lambda: sep.separation_ratios(problems, sp.random_basis(7, 2, 0)), "another model width"),
        (lambda: sep.separation_ratios(problems, np.ones((6, 2))), "Orthonormalise"),
        (lambda: sep.separation(problems, {2: basis}, np.ones((199, 1))), "at least 200 draws"),
        (lambda: sep.separation(problems, {2: basis}, np.ones((200, 2))), "for each of 1 k"),
        (lambda: language_energy(same, {2: basis}), "do not differ"),
    ):
        with pytest.raises(AnalysisError) as caught:
            call()
        assert says in str(caught.value)
    still = sep.Problems.of(np.ones((5, 6)), np.zeros((5, 6)))
    assert np.isnan(still.whole.ratio())
