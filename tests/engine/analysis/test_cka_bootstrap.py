"""Resampled CKA against resamples written out prompt by prompt."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import AnalysisError
from engine.similarity import cka
from engine.similarity.forms import Units, combine, dense_forms, exact_numerators, prepare
from engine.similarity.left_out import left_out_cka
from engine.stats.resampling import off_diagonal_forms, resamples, skew, transform, unit_index


def sides(seed: int, n: int, noise: float = 0.7, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) / np.arange(1, d + 1) ** 0.5
    return x, x + noise * rng.normal(size=x.shape)


def written_out_debiased(k: np.ndarray, m: np.ndarray, counts: np.ndarray, unit: np.ndarray) -> float:
    """Every copy of every unit listed; equal prompts' pairs dropped; f_i + f_j removed by least squares."""
    items = [
        (copy, unit_id, i)
        for unit_id, c in enumerate(counts)
        for copy in range(int(c))
        for i in np.flatnonzero(unit == unit_id)
    ]
    size = len(items)
    keep = [
        (s, t)
        for s in range(size)
        for t in range(size)
        if s != t and (items[s][1] != items[t][1] or items[s][0] == items[t][0])
    ]
    design = np.zeros((len(keep), size))
    for row, (s, t) in enumerate(keep):
        design[row, s] += 1
        design[row, t] += 1
    a = np.array([k[items[s][2], items[t][2]] for s, t in keep])
    b = np.array([m[items[s][2], items[t][2]] for s, t in keep])
    fitted = design @ np.linalg.lstsq(design, np.stack([a, b], 1), rcond=None)[0]
    return float((a - fitted[:, 0]) @ (b - fitted[:, 1]))


def written_out_biased(k: np.ndarray, m: np.ndarray, counts: np.ndarray, unit: np.ndarray) -> float:
    index = [i for u, c in enumerate(counts) for _ in range(int(c)) for i in np.flatnonzero(unit == u)]
    return float((cka.centre(k[np.ix_(index, index)]) * cka.centre(m[np.ix_(index, index)])).sum())


def numerators(a: np.ndarray, b: np.ndarray, counts: np.ndarray, units: Units) -> np.ndarray:
    buffers = np.empty((3, *a.shape), dtype=np.float32)
    x, y = prepare(a, units, buffers[0]), prepare(b, units, buffers[1])
    pairs, between = [], np.empty((len(counts), 3))
    for j, (left, right) in enumerate(((x, x), (y, y), (x, y))):
        pair, matrix = combine(left, right, units, buffers[2])
        pairs.append(pair)
        between[:, j] = dense_forms(matrix, counts)
    return exact_numerators(x, y, tuple(pairs), between, counts, units)


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [5, 1, 1, 2, 9, 9, 9, 4, 2, 7]])
def test_resampled_values_equal_resamples_written_out(groups: list[int] | None) -> None:
    x, y = sides(0, 10)
    k, m = cka.gram(x), cka.gram(y)
    unit = unit_index(10, None if groups is None else np.array(groups))
    units = Units.of(unit)
    rng = np.random.default_rng(1)
    g = unit.max() + 1
    counts = rng.multinomial(g, np.full(g, 1 / g), size=12).astype(np.float32)
    counts = counts[(counts > 0).sum(1) >= 4]
    assert len(counts) >= 4
    found = numerators(k, m, counts, units)
    for b, row in enumerate(counts):
        for kind, oracle in enumerate((written_out_debiased, written_out_biased)):
            kk, mm, km = (oracle(p, q, row, unit) for p, q in ((k, k), (m, m), (k, m)))
            expected = km / np.sqrt(kk * mm)
            value = found[2, kind, b] / np.sqrt(found[0, kind, b] * found[1, kind, b])
            assert value == pytest.approx(expected, abs=2e-5)  # float32 products, few pairs kept


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]])
def test_a_unit_that_makes_up_half_of_a_resample(groups: list[int] | None) -> None:
    """There the formula divides by zero twice, and the two poles cancel."""
    x, y = sides(4, 10)
    k, m = cka.gram(x), cka.gram(y)
    unit = unit_index(10, None if groups is None else np.array(groups))
    counts = np.array([[5, 1, 1, 1, 1, 1, 0, 0, 0, 0], [0, 5, 2, 0, 1, 1, 0, 1, 0, 0]], dtype=np.float32)
    if groups is not None:
        # ten prompts in pairs: N = 10, m = 2, so that ε = 12 − 4c is 0 at c = 3
        counts = np.array([[3, 1, 1, 0, 0], [1, 0, 3, 1, 0]], dtype=np.float32)
    found = numerators(k, m, counts, Units.of(unit))
    for b, row in enumerate(counts):
        kk, mm, km = (written_out_debiased(p, q, row, unit) for p, q in ((k, k), (m, m), (k, m)))
        value = found[2, 0, b] / np.sqrt(found[0, 0, b] * found[1, 0, b])
        assert value == pytest.approx(km / np.sqrt(kk * mm), abs=2e-5)  # float32 products, few pairs kept


def test_every_unit_once_gives_the_plain_estimates() -> None:
    x, y = sides(3, 30)
    k, m = cka.gram(x), cka.gram(y)
    for groups in (None, np.arange(30) // 3):
        found = numerators(
            k, m, np.ones((1, 30 if groups is None else 10), np.float32), Units.of(unit_index(30, groups))
        )[:, :, 0]
        for kind, debiased in enumerate((True, False)):
            value = found[2, kind] / np.sqrt(found[0, kind] * found[1, kind])
            assert value == pytest.approx(cka.cka_from_grams(k, m, debiased), abs=3e-6)


@pytest.mark.parametrize("n", [211, 240, 300])
def test_cyclic_forms_equal_plain_quadratic_forms(n: int) -> None:
    drawn = resamples(n, 300, 0)
    assert drawn.cyclic is not None
    rng = np.random.default_rng(0)
    half = rng.normal(size=(2, n, n)).astype(np.float32)
    matrices = half + half.transpose(0, 2, 1)
    skewed = np.empty((2, *drawn.cyclic.gather.shape), np.float32)
    for i in range(2):
        skew(drawn.cyclic, matrices[i], skewed[i])
    spectra = np.empty((2, drawn.cyclic.forward.shape[0], skewed.shape[2]), np.float32)
    transform(drawn.cyclic, skewed, spectra)
    found = off_diagonal_forms(drawn.cyclic, spectra)
    wide = matrices.astype(np.float64)
    wide[:, np.arange(n), np.arange(n)] = 0.0
    counts = drawn.counts.astype(np.float64)
    expected = np.stack([np.vecdot(counts @ m, counts) for m in wide], axis=1)
    # sums of n² float32 terms of size ~2: rounding grows like n·1e-7 of the spread
    np.testing.assert_allclose(found, expected, atol=3e-5 * expected.std())


def test_cyclic_counts_are_ordinary_resamples() -> None:
    counts = resamples(300, 3000, 1).counts
    np.testing.assert_array_equal(counts, np.round(counts))
    assert set(counts.sum(1)) == {300.0}
    # multinomial: E c = 1 and Var c = 1 − 1/n for every unit; 3000 resamples, 300 units
    assert counts.mean() == pytest.approx(1.0)
    assert np.abs(counts.mean(0) - 1).max() < 5 / np.sqrt(3000)
    assert counts.var(0).mean() == pytest.approx(1 - 1 / 300, abs=0.02)
    share = np.bincount(counts.astype(int).ravel())[:3] / counts.size
    np.testing.assert_allclose(share, [0.3679, 0.3679, 0.1839], atol=0.004)  # Poisson(1) limit
    # different resamples are uncorrelated: covariance of two rows is −1/n·n, far from n
    rows = counts[:40] - 1
    off = (rows @ rows.T)[~np.eye(40, dtype=bool)]
    assert np.abs(off).max() < 6 * np.sqrt(300)


def test_padding_of_the_grid_never_counts() -> None:
    drawn = resamples(211, 400, 0)  # prime: no grid fits exactly
    totals = drawn.counts.sum(1)
    assert drawn.counts.shape[1] == 211
    assert totals.min() != totals.max()
    assert np.abs(totals - 211).max() < 20
    a = cka.gram(sides(0, 211)[0])
    band = cka.bootstrap_cka(a, a, n_boot=400)
    assert band.low == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("groups", [None, "pairs"])
@pytest.mark.parametrize("noise", [0.02, 0.7, 50.0])
def test_fast_form_gives_the_exact_interval_within_a_tenth_of_a_standard_error(
    noise: float, groups: str | None
) -> None:
    n = 300 if groups is None else 600
    x, y = sides(4, n, noise, d=40)
    if groups is not None:  # second of each pair close to the first, as a translation is
        x[1::2] = x[::2] + 0.3 * x[1::2]
        y[1::2] = y[::2] + 0.3 * y[1::2]
    k, m = cka.gram(x), cka.gram(y)
    label = None if groups is None else np.arange(n) // 2
    for fast, exact in zip(
        *(cka.bootstrap_curves(k, m, groups=label, method=v) for v in ("fast", "exact")), strict=True
    ):
        assert exact.left_out == 0
        assert 0 < fast.left_out < 0.2
        assert fast.estimate == pytest.approx(exact.estimate, abs=1e-6)
        assert fast.se / exact.se == pytest.approx(1.0, abs=0.03)
        # the ends are quantiles of the same ~1000 resamples: their own noise is about 0.08 se
        assert abs(fast.low - exact.low) < 0.1 * exact.se
        assert abs(fast.high - exact.high) < 0.1 * exact.se


def test_automatic_choice_goes_exact_when_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sides(4, 220, d=40)
    k, m = cka.gram(x), cka.gram(y)
    exact = cka.bootstrap_cka(k, m, n_boot=200, method="exact")
    monkeypatch.setattr("engine.similarity.resampler.TOLERANCE", 1e-9)
    chosen = cka.bootstrap_cka(k, m, n_boot=200)
    assert chosen.left_out == 0
    # the jackknife reaches from the estimate, which is the fast one still
    np.testing.assert_allclose([chosen.low, chosen.high], [exact.low, exact.high], atol=1e-6)


def test_stack_equals_its_layers_and_dead_layers_say_why() -> None:
    pairs = [sides(s, 210, d=12) for s in range(4)]
    a = np.stack([cka.gram(x).astype(np.float32) for x, _ in pairs])
    b = np.stack([cka.gram(y).astype(np.float32) for _, y in pairs])
    a[2] = 0.0
    stack = cka.bootstrap_cka(a, b, n_boot=200)
    for layer in (0, 1, 3):
        one = cka.bootstrap_cka(a[layer], b[layer], n_boot=200)
        np.testing.assert_allclose([stack.low[layer], stack.high[layer]], [one.low, one.high], atol=1e-6)
        assert stack.estimate[layer] == pytest.approx(cka.cka_from_grams(a[layer], b[layer], True), abs=3e-6)
        assert stack.reasons[layer] is None
    assert np.isnan([stack.estimate[2], stack.low[2], stack.se[2]]).all()
    assert "first side is the same for every prompt" in (stack.reasons[2] or "")


def test_identical_models_have_an_interval_of_no_width() -> None:
    a = cka.gram(sides(0, 230)[0]).astype(np.float32)
    for band in cka.bootstrap_curves(a, a, n_boot=200):
        assert band.estimate == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose([band.low, band.high], 1.0, atol=1e-6)


def test_scale_of_the_features_does_not_matter() -> None:
    x, y = sides(0, 220, d=10)
    reference = cka.bootstrap_cka(cka.gram(x), cka.gram(y), n_boot=100)
    for factor in (1e-9, 1e9):
        scaled = cka.bootstrap_cka(cka.gram(factor * x), cka.gram(y), n_boot=100)
        np.testing.assert_allclose([scaled.low, scaled.high], [reference.low, reference.high], atol=1e-5)


@pytest.mark.parametrize("width", [5, 200])
def test_null_independent_sides_are_covered(width: int) -> None:
    """Debiased intervals of independent data hold 0 at least as often as promised."""
    trials, hits, errors, estimates = 150, 0, [], []
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        k, m = (cka.gram(rng.normal(size=(32, width))) for _ in range(2))
        band = cka.bootstrap_cka(k, m, n_boot=200, seed=seed)
        hits += bool(band.low <= 0 <= band.high)
        errors.append(float(band.se))
        estimates.append(float(band.estimate))
    # binomial: 0.95 − 3·√(0.95·0.05/150) = 0.897
    assert hits / trials > 0.897
    # conservative, but by no more than the factor √3 that the counts' own noise can add
    assert 1.2 < np.mean(errors) / np.std(estimates) < 2.0


def test_without_dropping_equal_pairs_the_interval_would_miss_zero() -> None:
    rng = np.random.default_rng(0)
    k, m = (cka.gram(rng.normal(size=(40, 200))) for _ in range(2))
    index = rng.integers(0, 40, size=(50, 40))
    naive = [cka.cka_from_grams(k[np.ix_(i, i)], m[np.ix_(i, i)], True) for i in index]
    assert np.mean(naive) > 0.3  # duplicates pass for agreement
    assert abs(float(cka.bootstrap_cka(k, m, n_boot=300).mean)) < 0.05


def test_coverage_of_a_planted_similarity_and_jackknife() -> None:
    truth = float(np.mean([cka.linear_cka(*sides(10**6 + i, 1500), True) for i in range(3)]))
    hits = {"bootstrap": 0, "jackknife": 0}
    for seed in range(120):
        k, m = (cka.gram(v) for v in sides(seed, 40))
        for name, band in (
            ("bootstrap", cka.bootstrap_cka(k, m, n_boot=200, seed=seed)),
            ("jackknife", cka.jackknife_cka(k, m)),
        ):
            hits[name] += bool(band.low <= truth <= band.high)
            assert band.low < band.estimate < band.high
    # 0.95 − 3·√(0.95·0.05/120) = 0.89
    assert min(hits.values()) / 120 > 0.89


@pytest.mark.parametrize("groups", [None, np.arange(24) // 2])
def test_jackknife_leaves_out_real_prompts(groups: np.ndarray | None) -> None:
    x, y = sides(7, 24)
    k, m = cka.gram(x), cka.gram(y)
    unit = unit_index(24, groups)
    size = unit.max() + 1
    for debiased in (True, False):
        left = np.array([cka.linear_cka(x[unit != u], y[unit != u], debiased) for u in range(size)])
        se = np.sqrt((size - 1) / size * ((left - left.mean()) ** 2).sum())
        band = cka.jackknife_cka(k, m, groups=groups, debiased=debiased)
        assert band.se == pytest.approx(se, rel=1e-4)  # float32 products
        assert band.unit == ("prompt" if groups is None else "group")
        assert "jackknife" in band.method


def test_pairs_as_units_widen_the_interval_when_pairs_repeat_each_other() -> None:
    x, y = sides(1, 60)
    twice = [
        cka.gram(np.repeat(v, 2, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(120, 6)))
        for v in (x, y)
    ]
    alone = cka.bootstrap_cka(*twice, debiased=False, n_boot=400)
    grouped = cka.bootstrap_cka(*twice, debiased=False, groups=np.arange(120) // 2, n_boot=400)
    assert grouped.n_units == 60
    assert grouped.se / alone.se == pytest.approx(np.sqrt(2), rel=0.2)  # half as many independent units


def test_similarity_table_gathers_curve_null_and_reasons() -> None:
    pairs = [sides(s, 60, noise) for s, noise in enumerate((0.1, 0.5, 100.0))]
    a, b = (np.stack([cka.gram(p[i]) for p in pairs]) for i in (0, 1))
    a[0] = 0
    table = cka.similarity_table(a, b, layers=[4, 5, 6], n_boot=100, n_draws=99)
    assert table.layer.tolist() == [4, 5, 6]
    assert table.reason[0]
    assert not table.reason[1]
    assert table.p[1] == 0.01 or table.p[1] < 0.05
    assert table.debiased[1] > table.null_band[1] > table.debiased[2]
    assert {len(v) for v in table.columns().values()} == {3}
    half = cka.similarity_table(a, b, index=np.arange(60) < 30, n_boot=50, n_draws=20)
    direct = cka.linear_cka(pairs[1][0][:30], pairs[1][1][:30], True)
    assert half.debiased[1] == pytest.approx(direct, abs=3e-6)
    assert half.n_units[0] == 30


def test_bad_input_is_refused_with_its_reason() -> None:
    eye = np.eye(6)
    for call, says in (
        (lambda: cka.bootstrap_cka([eye], [eye, eye]), "1 and 2"),
        (lambda: cka.bootstrap_cka(eye, eye, groups=np.arange(5)), "6 labels"),
        (lambda: cka.bootstrap_cka(eye, eye, groups=np.zeros(6, int)), "at least 2 units"),
        (lambda: cka.bootstrap_cka(np.eye(3), np.eye(3)), "n ≥ 4"),
    ):
        with pytest.raises(AnalysisError) as caught:
            call()
        assert says in str(caught.value)


@pytest.mark.parametrize(
    "groups", [None, np.arange(24) // 2, np.repeat(np.arange(9), [1, 1, 2, 2, 3, 3, 4, 4, 4])]
)
def test_leaving_out_is_refitting(groups: np.ndarray | None) -> None:
    x, y = sides(7, 24)
    unit = unit_index(24, groups)
    found = left_out_cka(cka.gram(x), cka.gram(y), Units.of(unit))
    wanted = [cka.linear_cka(x[unit != u], y[unit != u], True) for u in range(unit.max() + 1)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # float32 Grams
    assert np.isnan(left_out_cka(np.zeros((24, 24)), cka.gram(y), Units.of(unit))).all()


def test_the_debiased_band_holds_the_jackknifes() -> None:
    """A few prompts that outweigh the others: percentiles are narrower than the jackknife."""
    rng = np.random.default_rng(3)
    x = rng.standard_t(3, size=(60, 6))
    y = x + 0.3 * rng.standard_t(3, size=(60, 6))
    k, m = cka.gram(x), cka.gram(y)
    band, jack = cka.bootstrap_cka(k, m, n_boot=400), cka.jackknife_cka(k, m)
    assert band.low <= jack.low + 1e-6
    assert jack.high - 1e-6 <= band.high or band.high == 1.0
    assert band.high <= 1.0
    assert "no narrower than the jackknife" in band.method


@pytest.mark.parametrize(("n", "trials"), [(40, 60), (150, 60), (600, 25)])
def test_debiased_intervals_cover_whatever_the_tails(n: int, trials: int) -> None:
    """Gaussian columns, those of Student's t₃, rows of t₃'s lengths; CKA 0.2, 0.7 and 0.95, planted."""
    hits, cells = 0, 0
    scale = np.arange(1, 17) ** -0.5
    for kind in ("normal", "columns", "rows"):
        for truth in (0.2, 0.7, 0.95):
            for seed in range(trials):
                rng = np.random.default_rng([n, seed, cells])
                draw = rng.normal(size=(2, n, 16))
                if kind == "columns":
                    draw = rng.standard_t(3, size=(2, n, 16))
                elif kind == "rows":
                    draw = draw * np.sqrt(1 / rng.chisquare(3, size=(n, 1)))
                x, y = draw * scale
                y = np.sqrt(truth) * x + np.sqrt(1 - truth) * y
                band = cka.bootstrap_cka(cka.gram(x), cka.gram(y), n_boot=400, seed=seed)
                hits += bool(band.low <= truth <= band.high)
            cells += 1
    # at a coverage of 93 %: three binomial standard deviations
    assert hits / (cells * trials) > 0.93 - 3 * np.sqrt(0.93 * 0.07 / (cells * trials))
