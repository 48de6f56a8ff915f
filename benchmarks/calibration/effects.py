"""Conclusions about effects: carried-over activations, heads, ranks, bridges, weight changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.real import HALVES, halves
from benchmarks.calibration.scales import EVEN, Coordinates, uneven
from engine.bridge import numbers as bridge
from engine.heads import numbers as heads
from engine.heads.numbers import Heads
from engine.rank.numbers import rank_grid, smallest_sufficient
from engine.subspaces.numbers import Delta, Inputs, Target, conclude, per_layer, sweep
from engine.transport import Identity, RidgeTransport, ScaledProcrustes, TransportMap, evaluate_transport

Array = NDArray[np.float64]
Rng = np.random.Generator


class Sides(NamedTuple):
    """Train and validation rows of two models, and the map between them."""

    rows: tuple[Array, Array, Array, Array]
    estimator: TransportMap


def sides(estimator: TransportMap, share: float, n: int = 60, d: int = 10) -> Make:
    """Rows of which a share of the variance is a rotation of the other side's."""

    def make(rng: Rng) -> Sides:
        turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
        x = rng.normal(size=(n, d)) + 3.0
        y = np.sqrt(share) * (x - 3.0) @ turn + np.sqrt(1 - share) * rng.normal(size=(n, d)) - 1.0
        half = 2 * n // 3
        return Sides((x[:half], y[:half], x[half:], y[half:]), estimator)

    return make


def real_halves(estimator: TransportMap) -> Make:
    """Rows of a real stream at one state, and as many of other prompts."""

    def make(rng: Rng) -> Sides:
        found = halves(rng, 54)
        at = rng.integers(len(found.one))
        x, y = found.one[at], found.two[at]
        return Sides((x[:36], y[:36], x[36:], y[36:]), estimator)

    return make


def said_to_carry(given: Sides) -> bool:
    return _transport_words(given).startswith(("The map predicts", "The map carries"))


def beside(scale: float, turned: bool = False, share: float = 1.0, n: int = 60, d: int = 10) -> Make:
    """Rows that the map leaves as they are: the other side's, scaled, turned, or mixed with others."""

    def make(rng: Rng) -> Sides:
        x = rng.normal(size=(n, d))
        turn = np.linalg.qr(rng.normal(size=(d, d)))[0] if turned else np.eye(d)
        y = scale * (np.sqrt(share) * x @ turn + np.sqrt(1 - share) * rng.normal(size=(n, d)))
        half = 2 * n // 3
        return Sides((x[:half], y[:half], x[half:], y[half:]), Identity())

    return make


def _transport_words(given: Sides) -> str:
    return evaluate_transport(given.estimator, *given.rows, n_pairings=9).words


def said_scaled(given: Sides) -> bool:
    return _transport_words(given).startswith("Right direction, wrong amplitude")


def said_rotated(given: Sides) -> bool:
    return _transport_words(given).startswith("Same geometry, rotated")


Effect = Callable[[Array, Heads], Array]


class Pushes(NamedTuple):
    """What each head pushes at each prompt (heads, n), and what a set of them does (n,)."""

    push: Array
    effect: Effect


def quadratic(push: Array, subset: Heads) -> Array:
    """A KL grows like the square of what is pushed: the second order of softmax."""
    found: Array = 0.5 * push[sorted(subset)].sum(0) ** 2
    return found


def saturated(push: Array, subset: Heads) -> Array:
    """Every head does it all alone: the one that is best on train is no finding."""
    found: Array = push[sorted(subset)].max(0)
    return found


def pushes(sizes: Sequence[float], effect: Effect = quadratic, n: int = 120) -> Make:
    """Heads of these sizes times a size of the prompt, and noise."""

    def make(rng: Rng) -> Pushes:
        size = np.asarray(sizes)[:, None] * rng.lognormal(0, 0.5, n)
        return Pushes(size * rng.normal(1, 0.3, (len(sizes), n)), effect)

    return make


def said_localised(given: Pushes) -> bool:
    """The whole rule: the first half of the prompts to choose on, the second to report on."""
    push, effect = given
    n_heads, n = push.shape
    train = np.arange(n) < n // 2
    everything = effect(push, Heads(range(n_heads)))

    def score(subsets: Sequence[Heads]) -> list[float]:
        return [float(effect(push, subset)[train].mean()) for subset in subsets]

    order = heads.greedy(n_heads, n_heads - 1, score)
    grown = np.stack([effect(push, Heads(order[:k])) for k in range(1, n_heads)])
    k = heads.carrying((100 * grown[:, train].sum(1) / everything[train].sum()).tolist())
    if k is None:
        return False
    carried = heads.coverages(grown[[k - 1]][:, ~train], everything[~train], n_boot=200).at(0)
    random = [effect(push, subset)[~train].sum() for subset in heads.random_subsets(n_heads, k, 30, 0)]
    chance = 100 * float(np.mean(random)) / float(everything[~train].sum())
    return heads.is_localised(k, n_heads, carried, chance)


FULL = 32


def losses(needed: int) -> Make:
    """KL of a patch of each rank in the grid up to 32, falling evenly until `needed` directions are in."""

    def make(rng: Rng) -> tuple[Array, Array]:
        unit = rng.gamma(2.0, size=60)
        share = np.minimum(np.array(rank_grid(FULL)) / needed, 1.0)[:, None]
        return unit * (1 - 0.5 * share) * rng.lognormal(0, 0.2, (len(share), 60)), unit

    return make


def said_low_rank(given: tuple[Array, Array]) -> bool:
    """A quarter of the full rank or less is said to be enough."""
    loss, unit = given
    best = int(loss.mean(axis=1).argmin())
    index = smallest_sufficient(loss, loss[best], unit, n_boot=200).index
    return index is not None and 4 * rank_grid(FULL)[index] <= FULL


def languages(n: int, k: int, share: float, rotated: bool = False) -> Make:
    """Coordinates of which a share of the variance is a linear image of the other language's."""

    def make(rng: Rng) -> tuple[Array, Array]:
        w = rng.normal(size=(k, k)) / np.sqrt(k)
        if rotated:
            w = np.linalg.qr(w)[0]
        x = rng.normal(size=(n, k)) + 3.0
        return x, np.sqrt(share) * (x - 3.0) @ w + np.sqrt(1 - share) * rng.normal(size=(n, k))

    return make


def kinds_alone(n: int, k: int, kinds: int, share: float = 0.0) -> Make:
    """Coordinates of problems of several kinds; the kinds' means are shared, and a share of the rest."""
    plain = languages(n, k, share)

    def make(rng: Rng) -> tuple[Array, Array, NDArray[np.intp]]:
        kind = np.arange(n) % kinds
        centre = 3.0 * rng.normal(size=(kinds, k))
        x, y = plain(rng)
        return x + centre[kind], y + centre[kind], kind

    return make


def real_kinds(rng: Rng) -> list[tuple[Array, Array, NDArray[np.intp]]]:
    """Rows of a real stream at each state, beside others of the same category."""
    found = halves(rng, 54, 6)
    rows = [[np.flatnonzero(kinds == kind)[:8] for kind in np.unique(kinds)] for kinds in found.categories]
    sizes = [min(len(a), len(b)) for a, b in zip(*rows, strict=True)]
    one, two = (np.concatenate([at[:n] for at, n in zip(side, sizes, strict=True)]) for side in rows)
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    return [(x[one], y[two], kinds) for x, y in zip(found.one, found.two, strict=True)]


def _bridge(given: tuple[Array, ...]) -> str:
    x, y, *kinds = given
    return bridge.fit_bridge(x, y, groups=kinds[0] if kinds else None, draws=99).words


def said_bridged(given: tuple[Array, ...]) -> bool:
    return _bridge(given).startswith("The bridge is")


def said_thin(given: tuple[Array, ...]) -> bool:
    return "thin wrapper" in _bridge(given)


def said_language_bound(given: tuple[Array, ...]) -> bool:
    return "mostly nonlinear" in _bridge(given)


def said_rotation(given: tuple[Array, ...]) -> bool:
    return "rotation-like" in _bridge(given)


def several(make: Make, places: int = 6) -> Make:
    return lambda rng: [make(rng) for _ in range(places)]


def bridged_somewhere(given: list[tuple[Array, ...]]) -> bool:
    kinds = given[0][2] if len(given[0]) > 2 else None
    found = bridge.profile((one[:2] for one in given), groups=kinds, draws=99)  # type: ignore[misc]
    return bool((found.p < bridge.LEVEL).any())


def change(inside: bool, coordinates: Coordinates = EVEN) -> Make:
    """A small model and a random change of its weights; inside what its MLP writes, if wanted.

    `coordinates`: of the stream, in all that reads it, writes to it and lies in it.
    """
    layers, d, heads_, size, wide = 4, 32, 4, 4, 48
    widths = {"o_proj": heads_ * size, "down_proj": wide}

    def make(rng: Rng) -> Inputs:
        shapes = {"q_proj": (16, d), "k_proj": (16, d), "v_proj": (16, d), "o_proj": (d, 16)}
        shapes |= {"up_proj": (wide, d), "gate_proj": (wide, d), "down_proj": (d, wide), "clean": (12, d)}
        scale = coordinates.scale(rng, d)

        def stream(rows: int, at: int = 1) -> Array:
            drawn = coordinates.draw(rng, *((rows, d) if at else (d, rows)))
            return drawn * (scale if at else scale[:, None])

        sides = {n: (s[0], 1) if s[1] == d else (s[1], 0) for n, s in shapes.items()}
        held = {n: [stream(*side) for _ in range(layers)] for n, side in sides.items()}
        delta: dict[int, dict[str, Delta]] = {}
        for layer in (1, 2):
            leading = np.linalg.svd(held["down_proj"][layer])[0][:, :4]
            frame = leading if inside else np.diag(scale)
            delta[layer] = {
                name: Delta(frame @ coordinates.draw(rng, frame.shape[1], 3), rng.standard_normal((3, width)))
                for name, width in widths.items()
            }
        label, fit = (per_layer([stream(12) for _ in range(layers)]) for _ in range(2))
        items: dict[str, Any] = {name: per_layer(arrays) for name, arrays in held.items()}
        target = Target(label, fit, lambda layer: delta.get(layer, {}))
        return Inputs(n_layers=layers, d=d, n_heads=heads_, n_kv_heads=heads_, target=target, **items)

    return make


def said_to_win(given: Inputs) -> bool:
    return bool(conclude(sweep(given, k=4, broad=6)).winner)


UNRELATED: dict[str, Make] = {
    "a change without relation to the weights": change(False),
    **uneven(lambda coordinates: change(False, coordinates)),
}
PLANTED_HEADS = (0.005, 0.005, 1.0, 0.005, 0.005, 0.005, 0.7, 0.005)

ENTRIES = (
    Entry(
        "Transport",
        "The map predicts new prompts",
        said_to_carry,
        {
            "unrelated models, ScaledProcrustes": sides(ScaledProcrustes(), 0.0),
            "unrelated models, RidgeTransport": sides(RidgeTransport(), 0.0),
            f"{HALVES}, ScaledProcrustes": real_halves(ScaledProcrustes()),
            f"{HALVES}, RidgeTransport": real_halves(RidgeTransport()),
        },
        sides(RidgeTransport(), 0.7),
    ),
    Entry(
        "Transport: amplitude",
        "Right direction, wrong amplitude",
        said_scaled,
        {
            "the same geometry, rotated": beside(1.0, turned=True),
            "unrelated": beside(0.3, share=0.0),
            HALVES: real_halves(Identity()),
        },
        beside(0.3),
    ),
    Entry(
        "Transport: rotated",
        "Same geometry, rotated",
        said_rotated,
        {
            "unrelated": beside(1.0, share=0.0),
            "only the amplitude is wrong": beside(0.3, share=0.9),
            HALVES: real_halves(Identity()),
        },
        beside(1.0, turned=True),
    ),
    Entry(
        "Heads",
        "localised in k heads",
        said_localised,
        {"equal heads": pushes([0.5] * 8), "each head does it all": pushes([0.5] * 8, saturated)},
        pushes(PLANTED_HEADS),
    ),
    Entry(
        "Rank",
        "rank k of full is enough (a quarter or less)",
        said_low_rank,
        {
            "every direction adds as much": losses(FULL),
            "half of the directions are needed": losses(FULL // 2),
        },
        losses(4),
    ),
    Entry(
        "Bridge",
        "The bridge is …",
        said_bridged,
        {
            "unrelated, 40 problems, k = 30": languages(40, 30, 0.0),
            "unrelated, 20 problems, k = 6": languages(20, 6, 0.0),
            "only means of five categories are shared": kinds_alone(40, 6, 5),
            "only means of twelve, 24 problems": kinds_alone(24, 6, 12),
            f"{HALVES} within categories": lambda rng: real_kinds(rng)[rng.integers(5)],
        },
        kinds_alone(40, 6, 5, 0.8),
    ),
    Entry(
        "Bridge: thin",
        "a thin wrapper",
        said_thin,
        {"60 % of the variance is linear": languages(60, 6, 0.6), "unrelated": languages(20, 6, 0.0)},
        languages(60, 6, 0.95),
    ),
    Entry(
        "Bridge: bound",
        "mostly nonlinear or language-bound",
        said_language_bound,
        {
            "70 % of the variance is linear": languages(60, 6, 0.7),
            "all of it, 20 problems, k = 50": languages(20, 50, 1.0),
            "unrelated": languages(20, 6, 0.0),
        },
        languages(60, 6, 0.3),
    ),
    Entry(
        "Bridge: rotation",
        "rotation-like",
        said_rotation,
        {"a linear map that is no rotation": languages(60, 6, 0.95), "unrelated": languages(20, 6, 0.0)},
        languages(60, 6, 0.95, rotated=True),
    ),
    Entry(
        "Bridge: blocks",
        "the bridge holds up at some block",
        bridged_somewhere,
        {
            "unrelated at six blocks": several(languages(20, 6, 0.0)),
            "only means of five categories are shared": several(kinds_alone(40, 6, 5)),
            f"{HALVES} within categories": real_kinds,
        },
        several(languages(20, 6, 0.6)),
    ),
    Entry(
        "Subspace scores",
        "comes out first among write and mixed candidates",
        said_to_win,
        UNRELATED,
        change(True),
    ),
    Entry(
        "Subspace scores: mlp_write",
        "`mlp_write` comes out first among write and mixed candidates",
        lambda given: conclude(sweep(given, k=4, broad=6)).winner == "mlp_write",
        UNRELATED,
        change(True),
    ),
)
