"""R(ℓ) against explicit projectors, its chance values, verdicts and their error rates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.errors import AnalysisError
from engine.geometry.z import project, random_basis
from engine.residual_updates import norms as update_norms
from engine.residual_updates import numbers as ru

D, K = 48, 6


def states(seed: int, layers: int = 5, n: int = 40) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=(layers + 1, n, D)), axis=0)


def planted(seed: int, basis: np.ndarray, block: int, gain: float = 30.0) -> np.ndarray:
    out = np.diff(states(seed), axis=0)
    out[block] += gain * np.random.default_rng(seed + 1).normal(size=(40, basis.shape[1])) @ basis.T
    return out


@pytest.mark.parametrize("kind", ["ratio_of_means", "mean_of_ratios"])
def test_ratio_equals_explicit_projectors_for_every_k(kind: ru.Kind) -> None:
    s, basis = states(0), random_basis(D, K, 1)
    norms = ru.update_norms(ru.updates(s), basis)
    assert norms.ks == tuple(range(1, K + 1))
    for k in norms.ks:
        found = ru.residual_updates(norms, k, kind=kind, n_boot=50)
        projector = basis[:, :k] @ basis[:, :k].T
        for u in range(5):
            delta = s[u + 1] - s[u]
            z = np.linalg.norm(delta @ projector, axis=1)
            rest = np.linalg.norm(delta @ (np.eye(D) - projector), axis=1)
            expected = z.mean() / rest.mean() if kind == "ratio_of_means" else (z / rest).mean()
            assert found.ratio.estimate[u] == pytest.approx(expected, rel=1e-10)
            assert found.norm[u] == pytest.approx(np.linalg.norm(delta, axis=1).mean())


def test_bases_built_per_k_are_measured_one_by_one() -> None:
    deltas = list(ru.updates(states(1)))
    per_k = {k: random_basis(D, k, k) for k in (2, 5)}
    together = ru.update_norms(deltas, per_k)
    assert together.ks == (2, 5)
    for i, k in enumerate(together.ks):
        alone = ru.update_norms(deltas, per_k[k], [k])
        np.testing.assert_allclose(together.z[:, :, i], alone.z[:, :, 0], rtol=1e-12)
        np.testing.assert_allclose(together.rest[:, :, i], alone.rest[:, :, 0], rtol=1e-10)


def test_float32_updates_are_accurate_to_rounding() -> None:
    s, basis = states(2), random_basis(D, K, 1)
    wide = ru.residual_updates(ru.update_norms(ru.updates(s), basis), K, n_boot=20)
    narrow = ru.residual_updates(ru.update_norms(ru.updates(s.astype(np.float32)), basis), K, n_boot=20)
    # 48-term float32 products of states of size ~3
    np.testing.assert_allclose(narrow.ratio.estimate, wide.ratio.estimate, rtol=2e-6)
    np.testing.assert_allclose(narrow.p_random, wide.p_random, rtol=1e-3)


@pytest.mark.parametrize(("d", "k"), [(48, 6), (48, 1), (20, 17), (5, 2)])
@pytest.mark.parametrize("kind", ["ratio_of_means", "mean_of_ratios"])
def test_chance_equals_monte_carlo(d: int, k: int, kind: ru.Kind) -> None:
    x = np.random.default_rng(0).normal(size=(50_000, d))
    z, rest = np.linalg.norm(x[:, :k], axis=1), np.linalg.norm(x[:, k:], axis=1)
    # directions, not lengths: normalise before taking means
    total = np.linalg.norm(x, axis=1)
    z, rest = z / total, rest / total
    drawn = z.mean() / rest.mean() if kind == "ratio_of_means" else (z / rest).mean()
    assert ru.chance_ratio(d, k, kind) == pytest.approx(drawn, rel=0.02)


def test_chance_is_far_below_one_and_nearly_the_square_root_law() -> None:
    assert ru.chance_ratio(2048, 50) == pytest.approx(0.1574, abs=1e-4)
    assert ru.chance_ratio(2048, 50) == pytest.approx(np.sqrt(50 / 1998), rel=0.01)
    assert ru.chance_ratio(2, 1, "mean_of_ratios") == np.inf


def test_axis_labels_name_the_block_that_adds_the_update() -> None:
    found = ru.residual_updates(
        ru.update_norms(ru.updates(states(0, 3)), random_basis(D, K, 0)), K, n_boot=20
    )
    assert found.labels == ("−1→0", "0→1", "1→2")


def test_unrelated_updates_sit_at_chance_and_say_so() -> None:
    wrong_chance = wrong_one = 0
    ratios = []
    for seed in range(60):
        norms = ru.update_norms(ru.updates(states(seed)), random_basis(D, K, seed), [K])
        found = ru.residual_updates(norms, K, n_boot=200, seed=seed)
        ratios.append(found.relative.mean())
        wrong_chance += "nowhere shown to be off chance" not in found.verdict
        wrong_one += not found.verdict.startswith("Never Z-dominated")
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.01)
    assert wrong_one == 0
    assert wrong_chance / 60 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_prompts_that_all_move_alike_do_not_fake_a_finding() -> None:
    """One shared direction looks certain to a bootstrap over prompts; a random subspace is the right null."""
    wrong = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        deltas = [rng.normal(size=D) + 0.05 * rng.normal(size=(40, D)) for _ in range(5)]
        found = ru.residual_updates(ru.update_norms(deltas, random_basis(D, K, seed), [K]), K, n_boot=100)
        wrong += "nowhere shown to be off chance" not in found.verdict
    assert wrong / 80 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)


def test_planted_block_is_named_by_the_verdict() -> None:
    basis = random_basis(D, K, 3)
    found = ru.residual_updates(ru.update_norms(planted(0, basis, 2), basis), K)
    assert found.verdict.startswith("Z-dominated (R > 1) at 1→2;")
    assert "above chance (0.365) at 1→2" in found.verdict
    assert found.ratio.low[2] > 1
    assert found.p_random[2] < 1e-6
    weak = ru.residual_updates(ru.update_norms(planted(0, basis, 2, 1.0), basis), K)
    assert weak.verdict.startswith("Never Z-dominated: R stays below 1 (largest 0.499 at 1→2)")
    assert "above chance (0.365) at 1→2" in weak.verdict


def test_a_ratio_above_one_by_luck_is_not_called_dominated() -> None:
    basis = random_basis(D, K, 0)
    rng = np.random.default_rng(4)
    inside = rng.normal(size=(6, K)) @ basis.T
    outside = rng.normal(size=(6, D))
    outside -= project(outside, basis)
    inside *= (np.linalg.norm(outside, axis=1) * rng.lognormal(0, 1.2, 6) / np.linalg.norm(inside, axis=1))[
        :, None
    ]
    scale = np.linalg.norm(outside, axis=1).mean() / np.linalg.norm(inside, axis=1).mean()
    found = ru.residual_updates(ru.update_norms([1.05 * scale * inside + outside], basis), K)
    assert found.ratio.estimate[0] == pytest.approx(1.05)
    assert found.verdict.startswith("Not shown to be Z-dominated anywhere: R exceeds 1 at −1→0")


def test_below_chance_is_reported() -> None:
    basis = random_basis(D, K, 0)
    deltas = np.diff(states(0), axis=0)
    deltas[3] -= project(deltas[3], 0.99 * basis)
    found = ru.residual_updates(ru.update_norms(deltas, basis), K)
    assert found.verdict.endswith("below chance (0.365) at 2→3.")


def test_languages_and_their_paired_difference() -> None:
    basis = random_basis(D, K, 0)
    deltas = np.diff(states(5, n=80), axis=0)
    language = np.array(["zh", "en"] * 40)
    groups = np.arange(80) // 2
    deltas[1, ::2] += 3 * np.random.default_rng(0).normal(size=(40, K)) @ basis.T
    norms = ru.update_norms(deltas, basis, [K])
    found = ru.residual_updates(norms, K, languages=language, groups=groups, n_boot=400)
    assert list(found.languages) == ["zh", "en"]
    for name, curve in found.languages.items():
        alone = ru.residual_updates(ru.update_norms(deltas[:, language == name], basis, [K]), K, n_boot=20)
        np.testing.assert_allclose(curve.estimate, alone.ratio.estimate, rtol=1e-12)
    difference = found.differences["zh", "en"]
    np.testing.assert_allclose(
        difference.estimate, found.languages["zh"].estimate - found.languages["en"].estimate
    )
    assert difference.low[1] > 0
    assert (difference.low[[0, 2, 3, 4]] < 0).sum() >= 3
    assert "groups" in difference.method


def test_languages_that_do_not_differ_are_seldom_said_to_at_any_block() -> None:
    wrong = pointwise = 0
    for seed in range(120):
        language = np.random.default_rng(seed).permutation(["zh", "en"] * 30)
        norms = ru.update_norms(ru.updates(states(seed, n=60)), random_basis(D, K, seed), [K])
        found = ru.residual_updates(norms, K, languages=language, n_boot=200, seed=seed)
        ((low, high),) = found.differences_all.values()
        (band,) = found.differences.values()
        assert ((low < band.estimate) & (band.estimate < high)).all()
        wrong += bool(((low > 0) | (high < 0)).any())
        pointwise += bool(((band.low > 0) | (band.high < 0)).any())
    assert wrong / 120 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
    assert pointwise > wrong  # limits of each block by itself say so too often


def test_an_interval_that_reaches_one_is_not_called_never() -> None:
    labels, chance = ("−1→0", "0→1"), 0.3
    p = (np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    said = ru._verdict(labels, np.array([0.9, 0.5]), np.array([0.7, 0.2]), np.array([1.2, 0.8]), chance, p)
    assert said.startswith(
        "Not shown to be Z-dominated anywhere: R stays below 1 (largest 0.9 at −1→0), "
        "but sampling error reaches 1 at −1→0;"
    )
    sure = ru._verdict(labels, np.array([0.9, 0.5]), np.array([0.7, 0.2]), np.array([0.99, 0.8]), chance, p)
    assert sure.startswith("Never Z-dominated")


def test_pairs_share_what_they_share() -> None:
    """A difference between paired languages has no noise from what the pair has in common."""
    basis = random_basis(D, K, 0)
    rng = np.random.default_rng(0)
    common = rng.normal(size=(60, D)) * rng.lognormal(sigma=1.0, size=(60, 1))
    deltas = [np.repeat(common, 2, axis=0) + 0.05 * rng.normal(size=(120, D))]
    language = np.array(["zh", "en"] * 60)
    norms = ru.update_norms(deltas, basis, [K])
    paired = ru.residual_updates(norms, K, languages=language, groups=np.arange(120) // 2)
    loose = ru.residual_updates(norms, K, languages=language)
    assert paired.differences["zh", "en"].se[0] < 0.3 * loose.differences["zh", "en"].se[0]


def test_split_between_attention_and_mlp() -> None:
    rng = np.random.default_rng(0)
    basis = random_basis(D, K, 0)
    attn = [rng.normal(size=(30, D)) for _ in range(3)]
    mlp = [rng.normal(size=(30, D)) for _ in range(3)]
    attn[1] += 20 * rng.normal(size=(30, K)) @ basis.T
    split = ru.split_updates(attn, mlp, basis, n_boot=200)
    for part, band in ((attn, split.attn), (mlp, split.mlp)):
        direct = ru.residual_updates(ru.update_norms(part, basis, [K]), K, n_boot=20)
        np.testing.assert_allclose(band.estimate, direct.ratio.estimate, rtol=1e-10)
    inside_a, inside = project(attn[1], basis), project(attn[1] + mlp[1], basis)
    assert split.attn_share_z.estimate[1] == pytest.approx((inside_a * inside).sum() / (inside**2).sum())
    assert split.attn_share_z.low[1] > 0.9
    assert split.attn_share_rest.low[1] < 0.5 < split.attn_share_rest.high[1]


def test_prompts_without_an_update_do_not_divide_by_zero() -> None:
    basis = random_basis(D, K, 0)
    deltas = np.diff(states(0), axis=0)
    deltas[0] = 0.0
    deltas[1, 3] = 0.0
    for kind in ("ratio_of_means", "mean_of_ratios"):
        found = ru.residual_updates(ru.update_norms(deltas, basis, [K]), K, kind=kind, n_boot=30)
        assert np.isnan(found.ratio.estimate[0])
        assert np.isnan(found.ratio.low[0])
        assert np.isfinite(found.ratio.estimate[1:]).all()
        assert np.isfinite(found.ratio.low[1:]).all()


def test_bad_input_is_refused_with_its_reason() -> None:
    basis = random_basis(D, K, 0)
    norms = ru.update_norms(ru.updates(states(0)), basis, [2, 4])
    for call, says in (
        (lambda: ru.residual_updates(norms, 3), "one of [2, 4]"),
        (lambda: ru.residual_updates(norms, 2, languages=["zh"] * 3), "40 labels"),
        (lambda: ru.update_norms(ru.updates(states(0)), basis, [7]), "k among [1, 2, 3, 4, 5, 6]"),
        (lambda: ru.update_norms(ru.updates(states(0)), 2 * basis), "not orthonormal"),
        (lambda: ru.update_norms(ru.updates(states(0)), random_basis(9, 2, 0)), "another model width"),
        (lambda: ru.update_norms([], basis), "no updates"),
        (lambda: ru.chance_ratio(5, 5), "1 ≤ k < d = 5"),
        (lambda: ru.split_updates([], [], basis), "no blocks"),
    ):
        with pytest.raises(AnalysisError) as caught:
            call()
        assert says in str(caught.value)


@pytest.mark.parametrize("alike", [0.0, 2.0])
def test_parts_are_told_apart_by_a_random_subspace_as_often_as_stated(alike: float) -> None:
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(2, 20, 24)) + alike * rng.normal(size=(2, 1, 24))
    draws = [np.linalg.qr(rng.normal(size=(24, 4)))[0] for _ in range(600)]
    p = np.array([update_norms.parts_apart(one, two, z) for z in draws])
    assert abs((p < 0.05).mean() - 0.05) < 0.03  # of 600, three standard errors; the tail is nearly normal
    planted = one + 7 * one @ draws[1] @ draws[1].T
    assert update_norms.parts_apart(planted, two, draws[1]) < 1e-3
    assert np.isnan(update_norms.parts_apart(np.zeros((3, 24)), two, draws[0]))
    assert update_norms.parts_apart(one, one, draws[0]) == 1.0


def test_parts_that_share_only_large_coordinates_with_z_are_not_told_apart() -> None:
    told = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scale = np.exp(0.5 * rng.standard_normal(64))
        scale[:4] *= 12
        z = np.linalg.qr(scale[:, None] * rng.standard_normal((64, 6)))[0]
        one, two = rng.standard_normal((2, 40, 64))
        told.append(update_norms.parts_apart(one * scale, two, z) < 0.05)
    assert sum(told) <= 6, "5 % of 40, and three standard errors"


@pytest.mark.parametrize("count", [256, 400])
def test_languages_that_take_turns_are_both_in_the_null_of_scales(count: int) -> None:
    said = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scale = np.ones(96)
        scale[:4] = 10
        deltas = rng.standard_normal((3, count, 96)) * scale
        deltas[:, 1::2] *= 0.3
        deltas[:, 1::2] += 3 * (rng.standard_normal((3, 1, 96)) * scale)
        basis = np.linalg.qr(rng.standard_normal((96, 6)) * scale[:, None])[0]
        norms = update_norms.update_norms(list(deltas), basis, ks=(6,), concentration=True)
        said += bool((ru.residual_updates(norms, 6, n_boot=100).p_random < 0.025).any())
    assert said <= 3


def test_blocks_lost_in_rounding_are_left_out_of_all_that_is_concluded() -> None:
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(4, 40, 24))
    deltas[:2, :, :4] *= 20
    names = np.tile(["en", "zh"], 20)
    deltas[0, ::2, :4] *= 3
    norms = ru.update_norms(list(deltas), np.eye(24)[:, :4], [4])
    options = {"languages": names, "n_boot": 200}
    whole = ru.residual_updates(norms, 4, **options)
    assert whole.verdict.startswith("Z-dominated (R > 1) at −1→0, 0→1")
    lost = ru.residual_updates(dataclasses.replace(norms, rounding=np.array([0.6, 0.1, 0, 0])), 4, **options)
    assert lost.verdict.startswith("Z-dominated (R > 1) at 0→1")
    assert np.isnan([lost.low_all[0], lost.p_random[0], lost.differences_all["en", "zh"][0][0]]).all()
    np.testing.assert_array_equal(lost.ratio.estimate, whole.ratio.estimate)  # what is drawn stays
    np.testing.assert_array_equal(lost.rounding, [0.6, 0.1, 0, 0])
    every = ru.residual_updates(dataclasses.replace(norms, rounding=np.ones(4)), 4, **options)
    assert "every update is lost in rounding" in every.verdict
