"""Recomputing analyses without a model: the plain way against Patchbay's, in one process on one thread.

    python benchmarks/recompute.py [--quick] [--json FILE] [--markdown FILE]

Process CPU seconds, the least of several rounds. The plain way computes what each definition says,
one case after another; where that takes minutes it is run on a part and scaled, which the table says.
"""

from __future__ import annotations

import numpy as np
from beside import Row, cpu, options, report
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from engine.geometry.z import random_basis
from engine.residual_updates.numbers import update_norms
from engine.similarity import cka
from engine.stats.resampling import resamples
from engine.stats.uncertainty import random_subspace_moments

Array = NDArray[np.floating]


def stacks(layers: int, n: int, d: int) -> tuple[Array, Array, Array, Array]:
    """Grams of two models with decaying spectra, the second drifting away; and the last features."""
    rng = np.random.default_rng(0)
    scale = (1 / np.arange(1, d + 1) ** 0.6).astype(np.float32)
    a, b = (np.empty((layers, n, n), dtype=np.float32) for _ in range(2))
    for layer in range(layers):
        x = rng.standard_normal((n, d), dtype=np.float32) * scale
        y = x + np.float32(0.5 * layer / layers) * rng.standard_normal((n, d), dtype=np.float32) * scale
        a[layer], b[layer] = cka.gram(x, np.float32), cka.gram(y, np.float32)
    return a, b, x, y


def dense_cka(x: Array, y: Array) -> float:
    """The definition with d × d products."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(((y.T @ x) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))


def plain_bootstrap(k: Array, m: Array, times: int, debiased: bool) -> list[float]:
    """Draw prompts, index both Grams, compute CKA again."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(times):
        index = rng.integers(0, k.shape[0], k.shape[0])
        out.append(float(cka.cka_from_grams(k[np.ix_(index, index)], m[np.ix_(index, index)], debiased)))
    return out


def plain_permutations(k: Array, m: Array, times: int) -> list[float]:
    rng = np.random.default_rng(0)
    order = [rng.permutation(k.shape[0]) for _ in range(times)]
    return [float(cka.cka_from_grams(k, m[np.ix_(p, p)], True)) for p in order]


def plain_ratios(x: Array, basis: Array) -> list[float]:
    out = []
    for k in range(1, basis.shape[1] + 1):
        part = basis[:, :k]
        inside = (x @ part) @ part.T
        out.append(float(np.linalg.norm(inside, axis=1).mean() / np.linalg.norm(x - inside, axis=1).mean()))
    return out


def plain_null(x: Array, ranks: range, draws: int) -> list[float]:
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    return [float(((rows @ random_basis(x.shape[1], k, s)) ** 2).sum()) for k in ranks for s in range(draws)]


def similarity(a: Array, b: Array, x: Array, y: Array, sites: int, part: int) -> list[Row]:
    layers, n = a.shape[0], a.shape[1]
    k, m = a[-1], b[-1]
    pairs, scale = layers * sites, 1000 / part
    biased = cpu(lambda: plain_bootstrap(k, m, part, False), 1) * scale
    debiased = cpu(lambda: plain_bootstrap(k, m, part, True), 1) * scale
    exact = cpu(lambda: cka.bootstrap_curves(k, m, method="exact"), 2)
    fast = cpu(lambda: cka.bootstrap_curves(k, m))
    everything = cpu(lambda: [cka.bootstrap_curves(a, b) for _ in range(sites)], 2)
    one_null = cpu(lambda: plain_permutations(k, m, part), 1) * (n - 1) / part
    null = cpu(lambda: cka.permutation_null(a, b), 2)
    both = f"indexing the Grams for each resample, {part} run and scaled"
    return [
        Row(
            "one CKA, from features (d × d)",
            cpu(lambda: dense_cka(x, y), 1),
            cpu(lambda: cka.cka_from_grams(k, m), 20),
            "stored Grams",
        ),
        Row(
            "one CKA, from features (Grams)",
            cpu(lambda: cka.linear_cka(x, y), 1),
            cpu(lambda: cka.cka_from_grams(k, m, True), 20),
            "stored Grams, debiased",
        ),
        Row("1000 bootstraps, biased and debiased, exact", biased + debiased, exact, both),
        Row("1000 bootstraps, biased and debiased", biased + debiased, fast, both),
        Row(
            f"1000 bootstraps of {layers} layers × {sites} sites, both estimators",
            (biased + debiased) * pairs,
            everything,
            f"{both}, times {pairs}",
        ),
        Row(
            f"preparing 1000 resamples of {n} (once)",
            float("nan"),
            cpu(lambda: _prepare(n)),
            "no counterpart",
        ),
        Row(
            f"{layers} × {layers} heatmap",
            cpu(lambda: [[cka.cka_from_grams(p, q) for q in b] for p in a[:2]], 1) * layers / 2,
            cpu(lambda: cka.cross_layer_cka(a, b)),
            "pair by pair from Grams, two rows run and scaled",
        ),
        Row(
            f"{n - 1} permuted pairings of {layers} layers",
            one_null * layers,
            null,
            f"indexing one Gram for each permutation, {part} run and scaled",
        ),
        Row(
            "jackknife, one layer",
            cpu(lambda: _leave_out(k, m, part), 1) * n / part,
            cpu(lambda: cka.jackknife_cka(k, m), 2),
            f"sub-Grams, {part} run and scaled",
        ),
    ]


def _prepare(n: int) -> object:
    resamples.cache_clear()
    return resamples(n, 1000, 0)


def _leave_out(k: Array, m: Array, times: int) -> list[float]:
    rows = [np.delete(np.arange(k.shape[0]), i) for i in range(times)]
    return [float(cka.cka_from_grams(cka.sub_gram(k, r), cka.sub_gram(m, r), True)) for r in rows]


def subspaces(x: Array) -> list[Row]:
    d = x.shape[1]
    basis = random_basis(d, 64, 0).astype(np.float32)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    inner = rows @ rows.T
    energy = float(np.vecdot(inner, inner).sum())
    ranks = range(1, 9)
    return [
        Row(
            "R of one block, all k ≤ 64",
            cpu(lambda: plain_ratios(x, basis), 1),
            cpu(lambda: update_norms([x], basis, concentration=False), 10),
            "one projection for each k",
        ),
        Row(
            "null of random subspaces, 8 ranks",
            cpu(lambda: plain_null(x, ranks, 15), 1) * 8,
            cpu(lambda: [random_subspace_moments(d, k, 1.0, energy) for k in ranks], 50),
            "120 draws for each rank, 15 run and scaled; the Gram is stored",
        ),
    ]


def main() -> None:
    chosen = options(__doc__, "a few layers, fewer plain runs")
    layers, n, d = (5, 300, 512) if chosen.quick else (33, 600, 4096)
    with threadpool_limits(1):  # two threads on a busy machine measure the scheduler
        a, b, x, y = stacks(layers, n, d)
        rows = similarity(a, b, x, y, 4, 20 if chosen.quick else 60) + subspaces(x)
    about = f"{n} prompts, d = {d}, {layers} layers; float32 Grams; one thread, process CPU time."
    report(chosen, about, {"prompts": n, "d": d, "layers": layers, "sites": 4}, rows)


if __name__ == "__main__":
    main()
