"""Nulls, plants, ceilings and broken candidates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from subspace_inputs import Arrays, factors, haar

from engine.errors import AnalysisError
from engine.subspaces import numbers as subspace_scores
from engine.subspaces.numbers import (
    REGISTRY,
    Delta,
    Target,
    Workspace,
    candidate,
    conclude,
    kendall_w,
    per_layer,
    prepare,
    prepare_all,
    stability,
    sweep,
)
from engine.subspaces.numbers.layers import Frame, Projections, measures, outside, specificity
from engine.subspaces.numbers.workspace import Moment

Array = NDArray[np.float64]

DRAWS = 20_000


def scores_of_draws(d: int, n: int, k: int, r: int, rank: int, seed: int) -> dict[str, Array]:
    """Scores of 20,000 random subspaces on n rows of a given rank, r clean directions taken out."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) * np.sqrt(n)
    clean = haar(rng, d, r, 1)[0] if r else np.zeros((d, 0))
    weight = Moment.of(rng.standard_normal((d, rank)) * rng.uniform(0.2, 2, rank))
    empty = np.zeros(0)
    spectra = {
        "act": Moment.of(rows.T).energy,
        "o_proj": weight.energy,
        "down_proj": empty,
        "combined": empty,
    }
    frame = Frame(d, 0, rows, clean, np.zeros((d, 0)), spectra)
    bases = haar(rng, d, k, DRAWS)
    inside = ((weight.vectors.T @ bases) ** 2 * weight.energy[:, None]).sum(axis=1)
    at = Projections(
        np.full(DRAWS, k),
        rows @ bases,
        clean.T @ bases,
        np.zeros((DRAWS, 0, k)),
        {"o_proj": inside, "down_proj": np.zeros((DRAWS, k))},
    )
    outside = {f"{name}_specific": values for name, values in specificity(frame, at, r).items()}
    return measures(frame, at, k) | outside


CASES = [
    (16, 6, 3, 0, 4),
    (24, 10, 1, 4, 1),
    (24, 10, 5, 6, 10),
    (32, 5, 8, 8, 2),
    (20, 30, 10, 3, 20),
    (64, 40, 8, 0, 1),
    (64, 40, 1, 0, 40),
    (64, 40, 8, 16, 3),
    (128, 40, 8, 8, 40),
]


@pytest.mark.parametrize(("d", "n", "k", "r", "rank"), CASES)
def test_null_moments_and_p_values_hold_for_random_subspaces(
    d: int, n: int, k: int, r: int, rank: int
) -> None:
    found = scores_of_draws(d, n, k, r, rank, seed=d + k)
    for which in ("act", "o_proj", "specific"):
        z = found[f"z_{which}"]
        assert abs(z.mean()) < 4 / np.sqrt(DRAWS)
        kurtosis = ((z - z.mean()) ** 4).mean() / z.var() ** 2
        assert abs(z.std() - 1) < 4 * np.sqrt((kurtosis - 1) / (4 * DRAWS))
        assert stats.kstest(found[f"p_{which}"], "uniform").statistic < 0.02


def test_rank_one_p_values_are_exact() -> None:
    found = scores_of_draws(24, 8, 3, 0, 1, seed=1)
    # The Beta is the law itself here: the critical value of the test at 0.1 %.
    assert stats.kstest(found["p_act"], "uniform").statistic < 1.95 / np.sqrt(DRAWS)


@pytest.mark.parametrize(("d", "n", "k", "rank"), [(32, 5, 1, 2), (64, 40, 1, 2), (32, 8, 2, 3)])
def test_few_directions_of_unequal_size_are_the_beta_at_its_worst(d: int, n: int, k: int, rank: int) -> None:
    """Two moments don't fix the law of one or two directions in two or three: its tail is what counts."""
    found = scores_of_draws(d, n, k, 0, rank, seed=d + n + k + rank)
    for which in ("act", "o_proj"):
        p = found[f"p_{which}"]
        assert stats.kstest(p, "uniform").statistic < 0.06  # measured: up to 0.047
        for level, most in ((0.05, 1.1), (0.01, 1.25)):  # measured with 400,000 draws: 1.03 and 1.16
            error = np.sqrt(level / DRAWS)
            assert (p < level).mean() < most * level + 3 * error


def changed(
    arrays: Arrays, delta: dict[int, dict[str, tuple[Array, Array]]], rng: np.random.Generator
) -> Target:
    """A change with this delta, and a random label."""
    label = [rng.standard_normal((arrays.evaluation, arrays.d)) for _ in range(arrays.layers)]
    given = {
        layer: {name: Delta(*pair) for name, pair in tensors.items()} for layer, tensors in delta.items()
    }
    return Target(per_layer(label), per_layer(label), lambda layer: given.get(layer, {}))


@pytest.mark.parametrize("seed", range(5))
def test_a_change_planted_in_mlp_write_is_found(seed: int) -> None:
    arrays, rng = Arrays(layers=8, d=64, d_ff=96, seed=3 + seed), np.random.default_rng(seed)
    delta = {}
    for layer in (3, 4, 5):
        inside = np.linalg.svd(arrays.held["down_proj"][layer])[0][:, :4]
        sizes = {"o_proj": arrays.n_heads * arrays.head_dim, "down_proj": arrays.d_ff}
        delta[layer] = {
            name: (inside @ rng.standard_normal((4, 3)), rng.standard_normal((3, width)))
            for name, width in sizes.items()
        }
    scores = sweep(arrays.inputs(target=changed(arrays, delta, rng)), k=4, broad=8)
    assert scores.averaged.tolist() == [3, 4, 5]
    real = [i for i, entry in enumerate(scores.candidates) if entry.axis_kind != "ceiling"]
    best = max(real, key=lambda index: np.nan_to_num(scores.mean("r_combined")[index]))
    assert scores.names[best] == "mlp_write"
    assert scores.percent("combined")[best] == pytest.approx(100)
    found = conclude(scores)
    assert found.top_weight[0] == "mlp_write"
    assert "label is not above chance" in found.text


def test_a_change_in_random_subspaces_is_significant_for_no_candidate() -> None:
    arrays = Arrays(layers=4, d=48, changed=(1, 2))
    targets = []
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        sizes = {"o_proj": arrays.n_heads * arrays.head_dim, "down_proj": arrays.d_ff}
        delta = {
            layer: {name: factors(rng, arrays.d, 3, width) for name, width in sizes.items()}
            for layer in (1, 2)
        }
        targets.append(changed(arrays, delta, rng))
    told: list[tuple[int, int]] = []
    prepared = prepare_all(
        arrays.inputs(), targets, widest=4, broad=6, on_step=lambda *step: told.append(step)
    )
    done = [step for step, _ in told]
    assert (done == sorted(done), done[0], {total for _, total in told}) == (True, 0, {done[-1]})
    every = [one.scores(4) for one in prepared]
    silent = [not (scores.tables["holm_combined"] < 0.05).any() for scores in every]
    named = [conclude(scores).winner for scores in every]
    assert np.isfinite(every[0].tables["holm_combined"]).sum() > 40
    assert sum(silent) >= 95
    assert sum(name == "" for name in named) >= 95
    assert "not above chance" in conclude(every[0]).text


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_ceilings_hold_all_of_a_change_of_small_rank(rank: int) -> None:
    arrays = Arrays(rank=rank // 2 if rank == 4 else rank)
    arrays.delta = {
        layer: tensors if rank == 4 else {"down_proj": tensors["down_proj"]}
        for layer, tensors in arrays.delta.items()
    }
    k = 4
    scores = sweep(arrays.inputs(), k=k, broad=6)
    here = list(arrays.changed)
    # The best k-dimensional subspace has d/k; the basis itself has rank r < k and is scored with that.
    np.testing.assert_allclose(scores.ceiling("combined")[here], arrays.d / k)
    for name in ("dW_left_basis_ceiling", "dW_combined_ceiling"):
        row = scores.names.index(name)
        assert (scores.tables["rank"][row, here] == rank).all()
        np.testing.assert_allclose(scores.tables["r_combined"][row, here], arrays.d / rank)
        assert scores.percent("combined")[row] == pytest.approx(100)
    row = scores.names.index("dW_down_proj_ceiling")
    assert scores.percent("down_proj")[row] == pytest.approx(100)
    assert (np.isnan(scores.ceiling("o_proj")[here])).all() == (rank != 4)


@pytest.mark.parametrize("dense", [False, True])
def test_no_candidate_exceeds_a_true_ceiling(dense: bool) -> None:
    arrays = Arrays(rank=20, seed=5)
    scores = sweep(arrays.inputs(dense), k=4, broad=6)
    exact = {
        "act": "act_ceiling",
        "o_proj": "dW_o_proj_ceiling",
        "down_proj": "dW_down_proj_ceiling",
        "combined": "dW_combined_ceiling",
    }
    for which, name in exact.items():
        ratio = scores.tables[f"r_{which}"] / scores.tables[f"most_{which}"]
        assert np.nanmax(ratio) < 1 + 1e-9
        np.testing.assert_allclose(ratio[scores.names.index(name), list(arrays.changed)], 1)
        others = [row for row, other in enumerate(scores.names) if other != name]
        assert np.nanmax(ratio[others]) < 1 or which == "combined"


def test_zero_matrices_have_no_basis() -> None:
    arrays = Arrays()
    arrays.held["down_proj"] = [np.zeros_like(w) for w in arrays.held["down_proj"]]
    arrays.held["negative"] = arrays.held["positive"]
    scores = sweep(arrays.inputs(), k=4, broad=6)
    assert not scores.left_out
    for name in ("mlp_write", "mlp_roundtrip_write", "gate_kernel", "TaskDiff_contrast", "rotation_contrast"):
        row = scores.names.index(name)
        assert (scores.tables["rank"][row] == 0).all()
        assert np.isnan(scores.tables["r_act"][row]).all()
    summary = scores.summary()
    assert summary["layers_below_k"][list(summary["candidate"]).index("mlp_write")] == 3


def test_layers_that_steering_does_not_reach_have_no_activation_scores() -> None:
    arrays = Arrays()
    for name in ("label", "label_fit"):
        arrays.held[name][0] = np.zeros_like(arrays.held[name][0])
    scores = sweep(arrays.inputs(), k=4, broad=6)
    assert not scores.left_out
    row = scores.names.index("mlp_write")
    for name in ("r_act", "z_act", "p_act", "r_specific"):
        assert np.isnan(scores.tables[name][row, 0])
        assert np.isfinite(scores.tables[name][row, 1])
    row = scores.names.index("TaskDiff_lora_ceiling")
    assert scores.tables["rank"][row, 0] == 0


@pytest.fixture
def own_candidates() -> Iterator[None]:
    before = set(REGISTRY)
    about = {
        "family": "own",
        "axis_kind": "mixed",
        "source": "test",
        "needs": ("down_proj",),
        "definition": "x",
    }

    @candidate(name="first_axes", **about)
    def first_axes(inputs: Workspace, layer: int, k: int) -> Array:
        return np.eye(inputs.d)[:, :k]

    @candidate(name="single_precision", **about)
    def single_precision(inputs: Workspace, layer: int, k: int) -> Array:
        rows = inputs.get("clean", layer)
        return np.linalg.svd(rows - rows.mean(axis=0))[2][:k].T.astype(np.float32)

    @candidate(name="stretched", **about)
    def stretched(inputs: Workspace, layer: int, k: int) -> Array:
        return 2 * np.eye(inputs.d)[:, :k]

    @candidate(name="too_narrow", **about)
    def too_narrow(inputs: Workspace, layer: int, k: int) -> Array:
        return np.eye(inputs.d - 1)[:, :k]

    @candidate(name="too_many", **about)
    def too_many(inputs: Workspace, layer: int, k: int) -> Array:
        return np.eye(inputs.d)[:, : k + 1]

    @candidate(name="not_numbers", **about)
    def not_numbers(inputs: Workspace, layer: int, k: int) -> Array:
        return np.full((inputs.d, k), np.nan)

    @candidate(name="crashes", nested=True, **about)
    def crashes(inputs: Workspace, layer: int, k: int) -> Array:
        if layer == 1:
            raise ZeroDivisionError("one over nothing")
        return np.eye(inputs.d)[:, :k]

    yield
    for name in set(REGISTRY) - before:
        REGISTRY.remove(name)


@pytest.mark.usefixtures("own_candidates")
def test_broken_candidates_are_named_and_the_sweep_goes_on() -> None:
    arrays = Arrays()
    good, bad = ["mlp_write", "first_axes", "single_precision"], ["stretched", "too_narrow", "too_many"]
    scores = sweep(arrays.inputs(), [*good, *bad, "not_numbers", "crashes"], k=4, broad=6)
    assert list(scores.names) == good
    # Float32 columns inside the clean directions leave nothing outside them, not directions made of rounding.
    assert (scores.tables["rank_specific"][2] == 0).all()
    reasons = {failed.candidate: failed for failed in scores.left_out}
    assert "not orthonormal" in reasons["stretched"].reason
    assert "no basis of the stream" in reasons["too_narrow"].reason
    assert "no basis of the stream" in reasons["too_many"].reason
    assert "not finite" in reasons["not_numbers"].reason
    assert re.fullmatch(
        r"ZeroDivisionError: one over nothing \(test_subspace_scores_null\.py, line \d+\)",
        reasons["crashes"].reason,
    )
    assert reasons["crashes"].layer == 1
    d, delta = arrays.d, arrays.delta[2]
    shares = [((a @ b)[:4] ** 2).sum() / ((a @ b) ** 2).sum() for a, b in delta.values()]
    assert scores.tables["r_combined"][1, 2] == pytest.approx(np.mean(shares) / (4 / d))


def test_what_is_missing_or_broken_in_the_inputs_is_named() -> None:
    arrays = Arrays()
    scores = sweep(arrays.inputs(unembedding=None, positive_tokens=None), k=4, broad=6)
    reasons = {failed.candidate: failed.reason for failed in scores.left_out}
    assert reasons["lm_head_read"] == "needs unembedding"
    assert reasons["attn_min_taskdiff"] == "needs positive_tokens"
    assert "mlp_write" in scores.names
    broken = [w.copy() for w in arrays.held["o_proj"]]
    broken[3][0, 0] = np.nan
    scores = sweep(arrays.inputs(o_proj=per_layer(broken)), k=4, broad=6)
    reasons = {failed.candidate: failed.reason for failed in scores.left_out}
    assert "o_proj of layer 3" in reasons["attn_write"]
    assert "mlp_write" in scores.names
    assert "mlp_roundtrip_write" in scores.names


def test_refusals() -> None:
    arrays = Arrays()
    with pytest.raises(AnalysisError, match="Unknown candidates"):
        sweep(arrays.inputs(), ["nonsense"], k=4, broad=6)
    with pytest.raises(AnalysisError, match="no such subspaces"):
        sweep(arrays.inputs(), k=arrays.d + 1, broad=6)
    with pytest.raises(AnalysisError, match="not prepared"):
        prepare(arrays.inputs(), ["mlp_write"], widest=4, broad=6).scores(5)
    with pytest.raises(AnalysisError, match="cannot be averaged"):
        sweep(arrays.inputs(), ["mlp_write"], k=4, broad=6, layers=[77])
    nothing = Target(per_layer(arrays.held["label"]), per_layer(arrays.held["label_fit"]), lambda layer: {})
    with pytest.raises(AnalysisError, match=r"weight change is zero in what writes.*choose another diff"):
        sweep(arrays.inputs(target=nothing), ["mlp_write"], k=4, broad=6)
    elsewhere = replace(nothing, delta=lambda layer: {"q_proj": Delta(np.ones((arrays.d, 3)))})
    with pytest.raises(AnalysisError, match="does not write into the stream"):
        sweep(arrays.inputs(target=elsewhere), ["mlp_write"], k=4, broad=6)
    with pytest.raises(AnalysisError, match="name is taken"):
        candidate(name="mlp_write", family="x", axis_kind="read", source="x", needs=(), definition="x")(
            lambda inputs, layer, k: np.eye(3)
        )
    assert "mlp_write" in subspace_scores.definitions()


def test_memory_limit_changes_nothing() -> None:
    arrays = Arrays()
    plain = sweep(arrays.inputs(), k=4, broad=6)
    space = Workspace(arrays.inputs(), 6, 6)
    space.cache.limit = 1
    for layer in reversed(range(arrays.layers)):
        for name in ("write_not_downstream_read", "causally_isolated", "global_read", "mlp_up_read"):
            basis = REGISTRY[name].basis(space, layer, 4)
            rows = space.label(layer)
            share = ((rows @ basis) ** 2).sum()
            assert plain.tables["fraction_act"][plain.names.index(name), layer] == pytest.approx(share)


def test_agreement_of_several_changes() -> None:
    values = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1]])
    ranks = stats.rankdata(values, axis=1)
    brute = 12 * ((ranks.sum(0) - 7.5) ** 2).sum() / (9 * (64 - 4))
    assert kendall_w(values)[0] == pytest.approx(brute)
    # For two rankings W is (1 + Spearman's ρ)/2, with ties too.
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 5, (2, 12)).astype(float)
    assert kendall_w(pair)[0] == pytest.approx((1 + stats.spearmanr(*pair).statistic) / 2)
    assert kendall_w(np.arange(8.0)[None].repeat(3, axis=0))[0] == pytest.approx(1)
    draws = [kendall_w(rng.standard_normal((3, 20)))[1] for _ in range(300)]
    assert np.mean(np.array(draws) < 0.05) < 0.09  # 5 % and two binomial standard errors of 1.3 %
    arrays, other = Arrays(), Arrays(seed=1)
    one, two = (
        each.scores(4)
        for each in prepare_all(arrays.inputs(), [arrays.target(), other.target()], widest=4, broad=6)
    )
    spread = stability([one, two])
    row = spread.names.index("mlp_write")
    both = [scores.mean("r_act")[scores.names.index("mlp_write")] for scores in (one, two)]
    assert spread.mean["r_act"][row] == pytest.approx(np.mean(both))
    assert spread.sd["r_act"][row] == pytest.approx(np.std(both, ddof=1))
    assert stability([one, one]).w == pytest.approx(1)
    alone = sweep(arrays.inputs(target=other.target()), k=4, broad=6)
    for name, table in alone.tables.items():
        np.testing.assert_allclose(two.tables[name], table, rtol=1e-9, atol=1e-12, err_msg=name)
    with pytest.raises(AnalysisError, match="no spread"):
        stability([one])
    assert "one weight change" not in conclude(one, spread).text.lower()


@pytest.mark.parametrize(
    ("c", "k", "swallowed"), [(3, 7, 0), (3, 7, 2), (7, 3, 0), (7, 3, 1), (4, 4, 4), (0, 5, 0)]
)
def test_what_is_left_outside_clean_directions(c: int, k: int, swallowed: int) -> None:
    """Against a projector from an SVD; some of a basis may lie in the clean directions."""
    rng = np.random.default_rng(c + 10 * k)
    d, n = 20, 6
    clean = haar(rng, d, c, 1)[0] if c else np.zeros((d, 0))
    basis = np.linalg.qr(
        np.concatenate([clean[:, :swallowed], rng.standard_normal((d, k - swallowed))], axis=1)
    )[0]
    padded = np.zeros((2, d, k))
    padded[0], padded[1, :, : k - 1] = basis, basis[:, : k - 1]
    x = rng.standard_normal((n, d)) @ (np.eye(d) - clean @ clean.T)
    energy, rank = outside(x @ padded, clean.T @ padded, np.array([k, k - 1]))
    for index in range(2):
        left = padded[index] - clean @ (clean.T @ padded[index])
        u, sigma, _ = np.linalg.svd(left)
        u = u[:, : len(sigma)][:, sigma > 1e-8]  # columns had length 1
        projector = u @ u.T
        assert rank[index] == round(float(np.trace(projector)))
        np.testing.assert_allclose(energy[index], ((x @ projector) ** 2).sum(), rtol=1e-10, atol=1e-12)
