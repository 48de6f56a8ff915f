"""Transport maps at the size of a 7B model: fits against dense formulas, and what a slider move costs.

    python benchmarks/transport.py [--quick] [--json FILE] [--markdown FILE]

Process CPU seconds, the least of several rounds, one process on one thread. A slider move is all that
the page computes for it: path, scores with their bootstrap interval, permutation null and amplitude.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from beside import Row, cpu, options, report
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from engine import transport
from engine.transport import Paired, Side

Array = NDArray[np.float64]
ALPHAS = transport.DEFAULT_ALPHAS


def once(task: Callable[[], object]) -> float:
    """CPU time of a single run, for what takes a minute."""
    start = time.process_time()
    task()
    return time.process_time() - start


def pairs(n: int, m: int, d: int) -> tuple[Paired, Paired]:
    """Train and validation prompts in pairs: decaying spectra, a rotation of 40 directions, noise."""
    rng = np.random.default_rng(0)
    scale = 1 / np.arange(1, d + 1) ** 0.6
    x = rng.standard_normal((n + m, d)) * scale + rng.standard_normal(d)
    mix = rng.standard_normal((d, 40)) / np.sqrt(d)
    y = 20 * (x @ mix) @ rng.standard_normal((40, d)) / np.sqrt(d) + x
    y += 0.3 * rng.standard_normal((n + m, d)) * scale
    groups, roles = np.arange(n + m) // 2, np.arange(n + m) % 2
    return (
        Paired.of(x[:n], y[:n], groups[:n], roles[:n]),
        Paired.of(x[n:], y[n:], groups[n:], roles[n:]),
    )


def dense_procrustes(x: Array, y: Array, shrinkage: float) -> Array:
    """The definition with d × d covariances, their eigendecompositions and a d × d SVD."""
    d, roots = x.shape[1], []
    for side in (x, y):
        sigma = np.cov(side, rowvar=False)
        shrunk = (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / d * np.eye(d)
        values, vectors = linalg.eigh(shrunk)
        values = np.maximum(values, 1e-6 * values.max())
        roots.append(((vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T))
    xw, yw = (x - x.mean(0)) @ roots[0][0], (y - y.mean(0)) @ roots[1][0]
    u, s, vt = linalg.svd(xw.T @ yw)
    k = min(len(x) - 1, d)
    scale = s[:k].sum() / np.linalg.norm(xw @ u[:, :k]) ** 2
    return np.asarray(scale * roots[0][0] @ u[:, :k] @ vt[:k] @ roots[1][1])


def refitted_path(train: Paired, alphas: tuple[float, ...]) -> None:
    """Ridge fitted anew for each λ in the dual, as one would without a path."""
    x, y = train.x.standard, train.y.standard
    for alpha in alphas:
        linalg.solve(x @ x.T + alpha * np.eye(len(x)), y, assume_a="pos")


def fresh(train: Paired) -> Paired:
    """The same rows with nothing computed of them."""
    return Paired(Side(train.x.rows), Side(train.y.rows), train.groups, train.roles)


def fits(train: Paired, dense: bool) -> list[Row]:
    """Cold fits, and fits on sides that are decomposed already."""
    procrustes, ridge = transport.ScaledProcrustes(), transport.RidgeTransport()

    def cold(estimator: Any) -> object:
        own = fresh(train)
        return clone(estimator).fit_sides(own.x, own.y, own.groups)

    def warm(estimator: Any) -> object:
        return clone(estimator).fit_sides(train.x, train.y, train.groups)

    plain = once(lambda: dense_procrustes(train.x.rows, train.y.rows, 0.05)) if dense else float("nan")
    path = cpu(lambda: refitted_path(train, ALPHAS[:3]), 1) * len(ALPHAS) / 3
    kept = train.x.decompositions()
    nothing = float("nan")
    return [
        Row("ScaledProcrustes, fit from activations", plain, cpu(lambda: cold(procrustes)), "d × d formulas"),
        Row("ScaledProcrustes on decomposed sides", plain, cpu(lambda: warm(procrustes)), "d × d formulas"),
        Row(
            f"ridge, {len(ALPHAS)} λ, leave-one-pair-out, fit from activations",
            path,
            cpu(lambda: cold(ridge)),
            "one solve for each λ (3 run and scaled), without any leaving out",
        ),
        Row("ridge on decomposed sides", path, cpu(lambda: warm(ridge)), "the same"),
        Row(
            "one side from its kept decompositions",
            nothing,
            cpu(lambda: Side.restored(train.x.rows, kept)),
            "",
        ),
    ]


def moves(train: Paired, validation: Paired, vocabulary: int) -> list[Row]:
    """Slider moves as the page makes them: first path, then scores of the value moved to."""
    new = validation.x.rows, validation.y.rows
    own = train.x.rows, train.y.rows
    raw, empty = transport.raw_alikeness(validation), np.empty(0)
    wrong = list(train.shuffled(5, 0))

    def roads(fitted: Any) -> tuple[Any, Any]:
        return fitted.scorer(*own), fitted.scorer(*new)

    def judge(paths: tuple[Any, Any], null: list[Any], grid: list[float], value: float) -> object:
        for road in (*paths, *null):
            road.r2(grid)
        shuffled = np.array([road.r2([value])[0] for road in null]) if null else empty
        return transport.evaluate_path(paths, value, validation, shuffled, raw)

    def refit(estimator: Any) -> list[Any]:
        return [clone(estimator).fit_sides(p.x, p.y, p.groups).scorer(*new) for p in wrong]

    procrustes = transport.ScaledProcrustes().fit_sides(train.x, train.y)
    ridge = transport.RidgeTransport().fit_sides(train.x, train.y, train.groups)
    rank_roads, rank_null = roads(procrustes), refit(procrustes)
    penalty_roads, penalty_null = roads(ridge), refit(ridge)
    ks = [float(k) for k in (*range(1, 9), *(k * 2**e for e in range(6) for k in (8, 12)))]
    mapped, centre = procrustes.predict(new[0]), train.y.moments[0]
    rng = np.random.default_rng(1)
    small = transport.compress_unembedding(rng.standard_normal((vocabulary, train.x.shape[1])), 256)
    logit = transport.LogitSubspaceRidge(small, len(small)).fit_sides(train.x, train.y, train.groups)
    nothing = float("nan")

    def shrink(null: bool) -> object:
        moved = procrustes.with_shrinkage(0.2)
        return judge(roads(moved), refit(moved) if null else [], ks, float(moved.rank_))

    def directions() -> object:
        moved = logit.at_components(64)
        for road in roads(moved):
            road.r2(ALPHAS)
        return transport.evaluate_pairs(moved, train, validation, n_shuffles=0)

    return [
        Row("k slider", nothing, cpu(lambda: judge(rank_roads, rank_null, ks, 48.0), 5), ""),
        Row("λ slider", nothing, cpu(lambda: judge(penalty_roads, penalty_null, list(ALPHAS), 30.0), 5), ""),
        Row(
            "α slider (offset from the target's mean)",
            nothing,
            cpu(lambda: transport.r2(new[1], centre + 0.7 * (mapped - centre)), 5),
            "",
        ),
        Row("γ slider, path and scores", nothing, cpu(lambda: shrink(False), 2), ""),
        Row("γ slider with 5 refits on exchanged pairs", nothing, cpu(lambda: shrink(True), 1), ""),
        Row("q slider, path and scores", nothing, cpu(directions, 2), ""),
    ]


def main() -> None:
    chosen = options(__doc__, "a small width")
    n, m, d, vocabulary = (120, 60, 512, 2000) if chosen.quick else (450, 150, 4096, 8000)
    with threadpool_limits(1):  # two threads on a busy machine measure the scheduler
        train, validation = pairs(n, m, d)
        rows = fits(train, True) + moves(train, validation, vocabulary)
    about = f"{n} train and {m} validation prompts in pairs, d = {d}; float64; one thread, process CPU time."
    report(chosen, about, {"train": n, "validation": m, "d": d}, rows)


if __name__ == "__main__":
    main()
