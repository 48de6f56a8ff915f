"""Fits judged on problems that they never saw: values by hand, noise, planted dimensions, mere categories."""

from __future__ import annotations

import numpy as np
import pytest
from planted_clouds import planted

from engine.ard.fit import fit_ard, mmd2
from engine.ard.holdout import hold_out, mean_kernel, pairing_p
from engine.ard.spectrum import conclusion, spectrum
from engine.errors import AnalysisError

Clouds = list[np.ndarray]
SHAPES = 30
"""Fits of noise whose shape is looked at: mixtures cost more than the fits."""


def noise(rng: np.random.Generator, problems: int, d: int = 10, tokens: int = 6) -> tuple[Clouds, Clouds]:
    return tuple([rng.normal(size=(tokens, d)) for _ in range(problems)] for _ in range(2))  # type: ignore[return-value]


def test_values_are_those_of_mmd_and_plain_means() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)) + 1
    kernel = np.exp(-0.5 * ((x[:, None] - y) ** 2).sum(-1))
    assert mean_kernel(x, y) == pytest.approx(kernel.mean(), abs=1e-12)
    own = np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1))
    assert mean_kernel(x) == pytest.approx(own[~np.eye(5, dtype=bool)].mean(), abs=1e-12)
    fit = fit_ard(*noise(rng, 4), steps=5)
    source, target = noise(rng, 5)
    found = hold_out(fit, source, target)
    first, second = ([(c - fit.center) / fit.scale for c in side] for side in (source, target))
    logs = fit.log_lengthscales
    same = np.mean([mmd2(a, b, logs) for a, b in zip(first, second, strict=True)])
    apart = np.mean(
        [mmd2(s[i], s[(i + j) % 5], logs) for s in (first, second) for j in (1, 2) for i in range(5)]
    )
    # float32 kernels
    assert found.same == pytest.approx(same, abs=1e-6)
    assert found.different == pytest.approx(apart, abs=1e-6)
    assert (found.n, found.p_within) == (5, None)


def test_the_pairing_p_equals_all_orders() -> None:
    from itertools import permutations

    kernels = np.random.default_rng(3).normal(size=(5, 5))
    true = np.diag(kernels).mean()
    exact = np.mean(
        [kernels[np.arange(5), list(order)].mean() >= true - 1e-7 for order in permutations(range(5))]
    )
    found = pairing_p(kernels, np.zeros(5, dtype=np.intp), 4000, np.random.default_rng(0))
    # 4000 draws: three standard errors are at most 2.4 %
    assert found == pytest.approx(exact, abs=0.025)


def test_noise_looks_bimodal_and_is_called_nothing() -> None:
    """Fits of noise form two groups nearly always; held-out problems let at most one in twenty pass."""
    shapes, found = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        clouds = noise(rng, 5, d=8, tokens=4)
        fit = fit_ard(*clouds, penalty=0.003, steps=20, rate=0.3, batch_pairs=64, seed=seed)
        held = hold_out(fit, *noise(rng, 6, d=8, tokens=4), draws=99, seed=seed)
        if seed < SHAPES:
            shapes += spectrum(fit.log_lengthscales).kind == "bimodal"
        found += conclusion("bimodal", collapsed=fit.collapsed, p=held.p) == "bimodal"
    assert shapes > SHAPES // 2
    # 200 trials at 5 %: more than 19 have a probability of 0.3 %
    assert found <= 19


def test_planted_dimensions_pair_held_out_problems_and_do_not_count_as_collapsed() -> None:
    for seed in range(3):
        source, target, _ = planted(seed, problems=16, tokens=7, d=24, shared=6)
        fit = fit_ard(source[:10], target[:10], steps=60, rate=0.1, seed=seed)
        held = hold_out(fit, source[12:], target[12:], seed=seed)
        assert held.p < 0.05
        assert held.different > held.same + 0.05
        kind = spectrum(fit.log_lengthscales).kind
        assert conclusion(kind, collapsed=fit.collapsed, p=held.p) in ("bimodal", "graded")


def test_a_finding_is_called_collapsed_in_at_most_one_of_twenty() -> None:
    """200 small planted fits with a moderate λ: the word must not be said of a kernel that pairs problems."""
    gone = 0
    for seed in range(200):
        source, target, _ = planted(seed, problems=5, tokens=4, d=8, shared=3)
        fit = fit_ard(source, target, penalty=0.01, steps=20, rate=0.3, batch_pairs=64, seed=seed)
        gone += fit.collapsed
    assert gone <= 19


def test_kinds_of_problems_alone_do_not_count_within_kinds() -> None:
    """Clouds that share the kind of a problem across languages and nothing else."""
    whole = within = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kinds = np.repeat(np.arange(3), 8)
        centre = 2.0 * rng.normal(size=(3, 6))
        clouds = [[centre[kind] + rng.normal(size=(5, 6)) for kind in kinds] for _ in range(2)]
        fit = fit_ard(clouds[0][::2], clouds[1][::2], steps=30, rate=0.2, batch_pairs=128)
        held = hold_out(fit, clouds[0][1::2], clouds[1][1::2], groups=list(kinds[1::2]), draws=99)
        whole += held.p < 0.05
        within += held.p_within is not None and held.p_within < 0.05
    assert whole >= 18
    # 20 trials at 5 %: more than 4 have a probability of 0.3 %
    assert within <= 4


def test_too_few_problems_are_refused() -> None:
    rng = np.random.default_rng(0)
    fit = fit_ard(*noise(rng, 4), steps=2)
    with pytest.raises(AnalysisError, match="Too few held-out problems"):
        hold_out(fit, *noise(rng, 3))
    alone = hold_out(fit, *noise(rng, 4), groups=["a", "b", "c", "d"])
    assert (alone.p_within, alone.least_p) == (None, 1.0)
    assert hold_out(fit, *noise(rng, 4), groups=["a", "a", "c", "c"]).least_p == pytest.approx(1 / 4)
    assert hold_out(fit, *noise(rng, 4)).least_p == pytest.approx(1 / 24)
    assert hold_out(fit, *noise(rng, 9), draws=99).least_p == 1 / 100
