"""Permuted pairing: every shift against an explicit permutation, and the nominal rate."""

from __future__ import annotations

import numpy as np
import pytest

from engine.similarity import cka
from engine.similarity import null as cka_null
from engine.similarity.null import _arrangement, _shifted


@pytest.mark.parametrize("n", [14, 15])
@pytest.mark.parametrize("groups", [None, "pairs"])
def test_each_shift_is_a_permutation_of_whole_units(n: int, groups: str | None) -> None:
    n = n if groups is None else 2 * n
    rng = np.random.default_rng(0)
    k, m = (cka.gram(rng.normal(size=(n, 5))) for _ in range(2))
    pairs = np.arange(n) // 2
    label = None if groups is None else pairs
    table = _arrangement(n, label, None, np.random.default_rng(1))
    assert table is not None
    full, diagonal = _shifted(k, m, table)
    for shift in range(table.shape[0]):
        image = np.empty(n, int)
        image[table.ravel()] = np.roll(table, -shift, axis=0).ravel()
        if groups is not None:
            assert (pairs[image[0::2]] == pairs[image[1::2]]).all()
        moved = m[np.ix_(image, image)]
        assert full[shift] == pytest.approx((k * moved).sum(), rel=1e-5)  # float32 transforms
        assert diagonal[shift] == pytest.approx(np.diagonal(k) @ np.diagonal(moved))


def test_mean_of_the_biased_null_is_its_known_value() -> None:
    """E ⟨K, PLPᵀ⟩ = tr K tr L/(n − 1) for centred Grams and a uniformly random P."""
    rng = np.random.default_rng(0)
    k, m = (cka.gram(rng.normal(size=(60, 40))) for _ in range(2))
    null = cka.permutation_null(k, m, debiased=False, n_draws=400)
    expected = np.trace(k) * np.trace(m) / 59 / np.sqrt((k**2).sum() * (m**2).sum())
    assert not null.exact
    assert null.draws == 400
    spread = (null.high - null.low) / 4
    assert abs(null.mean - expected) < 4 * spread / np.sqrt(400)


@pytest.mark.parametrize("n_draws", [19, 60])
def test_null_rejects_at_the_nominal_rate(n_draws: int) -> None:
    trials, hits, curve_hits = 200, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        a, b = ([cka.gram(rng.normal(size=(40, 4))) for _ in range(3)] for _ in range(2))
        null = cka.permutation_null(a, b, n_draws=n_draws, seed=seed)
        assert null.exact == (n_draws == 19)
        hits += bool(null.p[0] <= 0.05)
        curve_hits += null.p_curve <= 0.05
    # 0.05 + 3·√(0.05·0.95/200) = 0.096
    assert hits / trials < 0.096
    assert curve_hits / trials < 0.096
    assert hits + curve_hits > 0  # the test can reject


def test_planted_similarity_is_found_and_the_band_is_above_pointwise_quantiles() -> None:
    rng = np.random.default_rng(1)
    x = [rng.normal(size=(80, 10)) for _ in range(6)]
    y = [v + (0.5 if i == 4 else 30.0) * rng.normal(size=v.shape) for i, v in enumerate(x)]
    null = cka.permutation_null([cka.gram(v) for v in x], [cka.gram(v) for v in y], n_draws=50)
    assert null.exact
    assert null.draws == 79
    assert null.p[4] == pytest.approx(1 / 80)
    assert null.p_curve == pytest.approx(1 / 80)
    assert (null.observed > null.band).tolist() == [False] * 4 + [True, False]
    assert null.band > np.median(null.high)


def test_roles_keep_languages_matched() -> None:
    """With roles, a Chinese prompt is only ever paired with another pair's Chinese prompt."""
    rng = np.random.default_rng(0)
    language = np.array(["zh", "en"] * 20)
    flipped = language.copy()
    flipped[20:] = np.array(["en", "zh"] * 10)
    groups = np.arange(40) // 2
    table = _arrangement(40, groups, flipped, rng)
    assert table is not None
    assert (flipped[table] == np.array(["en", "zh"])).all()


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.75)])
@pytest.mark.parametrize("n_draws", [15, 99])
def test_without_pairs_prompts_move_within_their_language(
    shares: tuple[float, float], n_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No draw and no shift puts a prompt of one language in the place of one of the other."""
    language = np.repeat(["en", "zh"], [int(80 * share) for share in shares])
    order = np.random.default_rng(0).permutation(80)
    language = language[order]
    seen: list[np.ndarray] = []
    drawn, shifted = cka_null._drawn, cka_null._shifted
    monkeypatch.setattr(cka_null, "_drawn", lambda a, b, p: seen.extend(p) or drawn(a, b, p))
    monkeypatch.setattr(cka_null, "_shifted", lambda a, b, t: seen.extend(images(t)) or shifted(a, b, t))
    x = np.random.default_rng(1).normal(size=(80, 5))
    null = cka.permutation_null(cka.gram(x), cka.gram(x), roles=language, n_draws=n_draws)
    assert null.exact == (shares == (0.5, 0.5) and n_draws == 15)
    assert len(seen) == null.draws + 1
    assert all((language[image] == language).all() for image in seen)
    moved = [(image != np.arange(80)).mean() for image in seen[1:]]
    assert np.mean(moved) > 0.9


def images(table: np.ndarray) -> list[np.ndarray]:
    """Every shift of a table's rows as a permutation of the prompts."""
    found = []
    for shift in range(len(table)):
        image = np.empty(table.size, int)
        image[table.ravel()] = np.roll(table, -shift, axis=0).ravel()
        found.append(image)
    return found


@pytest.mark.parametrize("each", [20, 60])
def test_languages_that_lie_apart_are_no_similarity(each: int) -> None:
    """Two models that share nothing but the offset of a language: the null holds it, a mixing one doesn't."""
    language, hits, mixing = np.repeat(["en", "zh"], each), 0, 0
    trials = 100
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        offset = 3.0 * (language == "zh")[:, None]
        x, y = (rng.normal(size=(2 * each, 4)) + offset for _ in range(2))
        grams = cka.gram(x), cka.gram(y)
        hits += bool(cka.permutation_null(*grams, roles=language, n_draws=39, seed=seed).p <= 0.05)
        mixing += bool(cka.permutation_null(*grams, n_draws=39, seed=seed).p <= 0.05)
    # 0.05 + 3 sqrt(0.05 * 0.95 / 100)
    assert hits / trials < 0.116
    assert mixing / trials > 0.9, "without languages the shared offset looks like a shared geometry"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * each, 4)) + 3.0 * (language == "zh")[:, None]
    y = x + 0.5 * rng.normal(size=x.shape)
    found = cka.permutation_null(cka.gram(x), cka.gram(y), roles=language, n_draws=39)
    assert found.p <= 0.05, "a similarity within languages is found"


def test_units_of_different_sizes_move_among_their_size() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9])
    rng = np.random.default_rng(2)
    x = rng.normal(size=(15, 3))
    null = cka.permutation_null(cka.gram(x), cka.gram(x + 0.1), groups=groups, n_draws=80)
    assert not null.exact
    assert null.draws == 80
    assert null.p < 0.05
    # the only unit of three can't move, so its prompts stay matched in every draw
    assert null.mean > -0.2


def test_layers_without_variance_do_not_disturb_the_others() -> None:
    rng = np.random.default_rng(0)
    x = [np.zeros((30, 3)), rng.normal(size=(30, 3))]
    grams = [cka.gram(v) for v in x]
    null = cka.permutation_null(grams, grams, n_draws=20)
    assert np.isnan(null.p[0])
    assert null.p[1] == pytest.approx(1 / 30)
    assert np.isfinite(null.band)
