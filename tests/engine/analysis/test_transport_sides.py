"""Sides share their decompositions without changing a map; paths give the scores of predictions; pairs are
exchanged whole."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from sklearn.base import clone

from engine.errors import AnalysisError
from engine.transport import (
    ClusteredTransport,
    LogitSubspaceRidge,
    MomentMatching,
    Paired,
    PCAProcrustes,
    RidgeTransport,
    ScaledProcrustes,
    Side,
    TransportMap,
    compress_unembedding,
    evaluate_pairs,
    evaluate_path,
    export_map,
    import_map,
    raw_alikeness,
    unembedding_basis,
)
from engine.transport.paths import MappedLengths

MAPS: list[TransportMap] = [
    MomentMatching(),
    RidgeTransport(),
    RidgeTransport(selection="holdout"),
    ScaledProcrustes(),
    PCAProcrustes(),
    PCAProcrustes(joint=True),
    LogitSubspaceRidge(np.random.default_rng(5).normal(size=(40, 12)), 5),
    ClusteredTransport(ScaledProcrustes(), n_clusters=2, min_size=5),
]


def activations(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.logspace(0.5, -0.5, d) + 5 * rng.normal(size=d)
    return x, x @ rng.normal(size=(d, d)) / np.sqrt(d) + 0.5 * rng.normal(size=(n, d)) - 3.0


@pytest.mark.parametrize("n", [9, 40])
@pytest.mark.parametrize("estimator", MAPS, ids=str)
def test_shared_sides_give_the_same_map(estimator: TransportMap, n: int) -> None:
    x, y = activations(1, n, 12)
    groups, new = np.arange(n) // 2, activations(2, 6, 12)[0]
    sides = Side(x), Side(y)
    _ = sides[0].decompositions(), sides[1].decompositions()
    shared = clone(estimator).fit_sides(*sides, groups)
    np.testing.assert_array_equal(clone(estimator).fit(x, y, groups).predict(new), shared.predict(new))
    order = np.random.default_rng(3).permutation(n)
    moved = clone(estimator).fit_sides(sides[0], sides[1].reordered(order), groups)
    expected = clone(estimator).fit(x, y[order], groups).predict(new)
    # a reordered decomposition against a new one: rounding, times the condition of whitening
    np.testing.assert_allclose(moved.predict(new), expected, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("n", [9, 40])
def test_kept_decompositions_come_back_bit_for_bit(n: int) -> None:
    x, _ = activations(1, n, 12)
    x[:, 3] = 7.5
    side = Side(x)
    back = Side.restored(x, side.decompositions())
    for name in ("span", "standard_span"):
        for part in ("mean", "u", "sigma", "v"):
            np.testing.assert_array_equal(
                getattr(getattr(back, name), part), getattr(getattr(side, name), part)
            )
    with pytest.raises(AnalysisError, match="belongs to other activations"):
        Side.restored(x[:-1, :7], side.decompositions())


def test_whole_pairs_are_exchanged_and_languages_keep_their_place() -> None:
    groups, roles = np.repeat(np.arange(6), 2), np.tile(["en", "zh"], 6)
    roles[4:6] = roles[4:6][::-1]  # one pair has its languages the other way round
    y = np.arange(12.0)[:, None]
    train = Paired.of(y, y, groups, roles)
    seen = set()
    for wrong in train.shuffled(50, 0):
        source = wrong.y.rows[:, 0].astype(int)
        np.testing.assert_array_equal(roles[source], roles)
        assert len({tuple(sorted(groups[source][groups == g])) for g in range(6)}) == 6
        assert all(len(set(groups[source][groups == g])) == 1 for g in range(6))
        seen.add(tuple(source))
    assert len(seen) > 40
    with_single = Paired.of(y[:11], y[:11], groups[:11])
    assert all(wrong.y.rows[10, 0] == 10 for wrong in with_single.shuffled(5, 0))


def test_prompts_without_a_pair_are_exchanged_within_their_language() -> None:
    """A map that only knows the language scores as well on wrong pairs, whether or not prompts have pairs."""
    rng, roles = np.random.default_rng(0), np.tile(["en", "zh"], 30)
    of_language = np.where(roles == "en", 3.0, -3.0)[:, None]
    x, y = (sign * of_language + rng.normal(size=(60, 10)) for sign in (1, -1))
    train = Paired.of(x[:40], y[:40], None, roles[:40])
    for wrong in train.shuffled(5, 0):
        moved = [int(np.flatnonzero((train.y.rows == row).all(1))[0]) for row in wrong.y.rows]
        np.testing.assert_array_equal(roles[moved], roles[:40])
    scores = evaluate_pairs(RidgeTransport(), train, Paired.of(x[40:], y[40:], None, roles[40:]))
    assert scores.r2_validation > 0.8
    assert scores.r2_shuffled > 0.8
    assert "permuted pairs" in scores.words
    alone = evaluate_pairs(
        RidgeTransport(), Paired.of(x[:40], y[:40], None, np.arange(40)), Paired.of(x[40:], y[40:])
    )
    assert np.isnan(alone.r2_shuffled)
    assert alone.n_shuffles == 0


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40)])
def test_a_path_has_the_scores_of_its_predictions(n: int, d: int) -> None:
    x, y = activations(4, n + 20, d)
    train, validation = Paired.of(x[:n], y[:n]), Paired.of(x[n:], y[n:])
    cases: list[tuple[TransportMap, list[float]]] = [
        (ScaledProcrustes().fit(x[:n], y[:n]), [1, 3, 8]),
        (RidgeTransport().fit(x[:n], y[:n]), [0.1, 30.0, 1e4]),
    ]
    for fitted, parameters in cases:
        paths = fitted.scorer(x[:n], y[:n]), fitted.scorer(x[n:], y[n:])
        for parameter in parameters:
            there = fitted.at_rank(parameter) if parameter == int(parameter) < 9 else fitted.at(parameter)
            expected = asdict(evaluate_pairs(there, train, validation, n_shuffles=0, n_pairings=19))
            raw = raw_alikeness(validation)
            found = asdict(evaluate_path(paths, parameter, validation, np.empty(0), raw, n_pairings=19))
            for name in ("words", "r2_train_whitened", "r2_validation_whitened"):
                del found[name], expected[name]
            # expanded squares of float64 activations of size 10
            assert found == pytest.approx(expected, rel=1e-7, abs=1e-8, nan_ok=True)


def test_the_path_of_a_logit_ridge_counts_the_whole_space() -> None:
    x, y = activations(6, 60, 12)
    fitted = LogitSubspaceRidge(np.random.default_rng(7).normal(size=(30, 12)), 4).fit(x[:40], y[:40])
    scorer = fitted.scorer(x[40:], y[40:])
    for alpha in (0.1, 100.0):
        wanted = fitted.at(alpha).score(x[40:], y[40:])
        assert scorer.r2([alpha])[0] == pytest.approx(wanted, rel=1e-9)


def test_other_sizes_of_a_fitted_map_equal_fitting_them() -> None:
    x, y = activations(8, 40, 12)
    groups, unembedding = np.arange(40) // 2, np.random.default_rng(9).normal(size=(50, 12))
    wide = LogitSubspaceRidge(unembedding, 10).fit(x, y, groups)
    expected = LogitSubspaceRidge(unembedding, 3).fit(x, y, groups).predict(x)
    np.testing.assert_allclose(wide.at_components(3).predict(x), expected, atol=1e-9)
    for joint in (False, True):
        whole = PCAProcrustes(joint=joint).fit(x, y)
        expected = PCAProcrustes(4, joint).fit(x, y).predict(x)
        np.testing.assert_allclose(whole.at_rank(4).predict(x), expected, atol=1e-9)
        np.testing.assert_array_equal(whole.at_rank(4).at_rank(None).predict(x), whole.predict(x))
    clustered = ClusteredTransport(ScaledProcrustes(), n_clusters=2, min_size=5).fit(x, y)
    cut = clustered.remapped(lambda m: m.at_rank(2))  # type: ignore[attr-defined]
    expected = ClusteredTransport(ScaledProcrustes(n_components=2), n_clusters=2, min_size=5).fit(x, y)
    np.testing.assert_allclose(cut.predict(x), expected.predict(x), atol=1e-9)
    with pytest.raises(AnalysisError, match="1 ≤ k ≤ 10"):
        wide.at_components(11)


@pytest.mark.parametrize("vocabulary", [7, 80])
def test_a_compressed_unembedding_has_the_same_leading_directions(vocabulary: int) -> None:
    rng = np.random.default_rng(10)
    unembedding, gain = rng.normal(size=(vocabulary, 12)), rng.uniform(0.5, 2, 12)
    small = compress_unembedding(unembedding, 6, gain)
    assert small.shape == (6, 12)
    expected = np.linalg.svd(unembedding * gain)[2][:4].T
    for basis in (unembedding_basis(small, 4), unembedding_basis(unembedding, 4, gain)):
        np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=1e-9)
        np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40)])
def test_moving_the_shrinkage_scores_as_fitting_it_anew(n: int, d: int) -> None:
    """Kept views of rows belong to those rows and to no shrinkage: fresh maps on copies score the same."""
    x, y = activations(11, n + 20, d)
    parts = {"train": (x[:n], y[:n]), "new": (x[n:], y[n:])}
    first = ScaledProcrustes(0.05).fit(*parts["train"])
    for shrinkage in (0.0, 0.3, 1.0, 0.05):
        moved = first.with_shrinkage(shrinkage)
        for rows in parts.values():
            found = moved.scorer(*rows)
            fresh = ScaledProcrustes(shrinkage).fit(x[:n].copy(), y[:n].copy())
            for k in (1, 3, fresh.rank_):
                wanted = fresh.at_rank(k).score(*rows)
                # without shrinkage and with few prompts all singular values tie: only the full rank is unique
                if k == fresh.rank_ or shrinkage > 0 or n > d:
                    assert found.r2([k])[0] == pytest.approx(wanted, rel=1e-7, abs=1e-7)
        np.testing.assert_allclose(moved.predict(x[n:]), fresh.predict(x[n:]), atol=1e-6)
    again = first.scorer(x[n:] + 1.0, y[n:]), first.scorer(x[n:], y[n:])
    assert again[0].r2([3])[0] != again[1].r2([3])[0], "other rows are seen anew"


def test_a_loaded_procrustes_scores_without_its_decompositions() -> None:
    x, y = activations(12, 60, 12)
    fitted = ScaledProcrustes().fit_sides(Side(x[:40]), Side(y[:40]))
    back = import_map(*export_map(fitted))
    assert not hasattr(back, "_inside")
    for k in (1, 5, 12):
        found = back.scorer(x[40:], y[40:]).r2([k])[0]
        assert found == pytest.approx(fitted.scorer(x[40:], y[40:]).r2([k])[0], rel=1e-9)


@pytest.mark.parametrize("outside", ["moments", "identity"])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_a_logit_ridge_is_judged_as_its_predictions_are(outside: str, k: int) -> None:
    x, y = activations(13, 70, 12)
    unembedding = np.random.default_rng(14).normal(size=(50, 12))
    fitted = LogitSubspaceRidge(unembedding, 10, outside=outside).fit(x[:40], y[:40])
    moved, mean = fitted.at_components(k), y[:40].mean(axis=0)
    for rows in ((x[:40], y[:40]), (x[40:], y[40:])):
        lengths, score = moved.judged(*rows)
        mapped = moved.predict(rows[0])
        expected = MappedLengths.of(mapped, rows[1], mean)
        assert score == pytest.approx(moved.score(*rows), rel=1e-9)
        for name in ("deviation", "target_deviation", "deviation_dot", "length", "target_length", "dot"):
            np.testing.assert_allclose(getattr(lengths, name), getattr(expected, name), rtol=1e-8, atol=1e-8)
        for at in (slice(None), np.array([0, 3, 4])):
            np.testing.assert_allclose(lengths.gram(at), expected.gram(at), rtol=1e-8, atol=1e-7)


def test_moving_the_shrinkage_does_not_meet_the_width_again() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((60, 96)) for _ in range(2))
    train, new = Paired.of(x[:40], y[:40]), Paired.of(x[40:], y[40:])
    moved = ScaledProcrustes().fit_sides(train.x, train.y).with_shrinkage(0.3)
    own, other = (moved.scorer(s.x.rows, s.y.rows) for s in (train, new))
    evaluate_path((own, other), float(moved.rank_), new, np.empty(0), raw_alikeness(new))
    assert "left_" not in vars(moved), "a product with the width"
