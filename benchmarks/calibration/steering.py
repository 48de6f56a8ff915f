"""Titles of steering by directions and by weights: everything is chosen on train and told by validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.steering import words as steering_words
from app.weight_steering import words as weight_steering_words
from benchmarks.calibration.entry import Entry, Make
from engine.steering.report import Effects, curves, equal_table
from engine.steering.run import choose, equal_moves, moves
from engine.steering.spec import Steering
from engine.steering.vectors import Move
from engine.weight_steering.report import UNSTEERED, Bench, Key, against_first
from engine.weight_steering.report import curves as weight_curves
from engine.weight_steering.spec import FIGURES, Contrast, WeightSteering

Array = NDArray[np.float64]
Rng = np.random.Generator
PROMPTS, DRAWS = 24, 8
SPEC = Steering(
    target="tuned",
    source="base",
    component="resid_post",
    layer=1,
    position="decision",
    direction="difference",
    alphas=(0.1, 0.2, 0.4),
    draws=DRAWS,
    n_boot=400,
)
CHECK = {"value": 0.0, "limit": 1e-6}


@dataclass
class World:
    """What directions do: a shift per prompt that grows with α, and a KL that grows with its square.

    Attributes:
        own: mean shift of v at α = 1, nats. common, others: mean and standard deviation of the shifts of
            random directions.
    """

    rng: Rng
    own: float
    common: float
    others: float
    _drawn: dict[tuple[str, int], tuple[Array, Array]] = field(default_factory=dict)

    def _of(self, move: Move) -> tuple[Array, Array]:
        """Shift and KL of every prompt at α = 1."""
        key = (move.series, move.draw)
        if key not in self._drawn:
            drawn = self.common + self.others * self.rng.normal()
            mean = drawn if move.series == "random" else self.own
            each = self.rng.standard_t(5, 2 * PROMPTS)
            self._drawn[key] = mean + each, self.rng.lognormal(-1, 0.5, 2 * PROMPTS)
        return self._drawn[key]

    def effects(self, wanted: Sequence[Move]) -> Effects:
        """All conditions on train and validation prompts, which are wanted and neutral at once."""
        n = 2 * PROMPTS
        size = [1.0 if move.series.startswith("ablate") else move.alpha for move in wanted]
        return Effects(
            spec=SPEC,
            moves=list(wanted),
            change=np.array([a * self._of(m)[0] for a, m in zip(size, wanted, strict=True)]),
            before=np.zeros(n),
            kls=np.array([a * a * self._of(m)[1] for a, m in zip(size, wanted, strict=True)]),
            rows=np.arange(n),
            roles={"wanted": np.ones(n, dtype=bool), "neutral": np.ones(n, dtype=bool)},
            in_train=np.arange(n) < PROMPTS,
            groups=np.arange(n),
        )


def world(own: float, others: float = 0.0, exchangeable: bool = False, common: float = 0.0) -> Make:
    """Directions with these effects; `exchangeable`: v is one of the random ones."""
    return lambda rng: World(rng, others * rng.normal() if exchangeable else own, common, others)


def _run(given: World) -> tuple[pl.DataFrame, dict[str, Any], dict[str, Any]]:
    """Table, condition and summary of a stored run."""
    first = given.effects(moves(SPEC))
    alpha = choose(first, SPEC.budget)
    assert alpha is not None
    level = float(first.kl(Move("direction", 0, alpha), "train").mean())
    second = given.effects(equal_moves(SPEC, first, level, alpha))
    equal = {"level": level, "best": equal_table(second)[1]}
    table = curves(first).filter(split="validation")
    return table, SPEC.to_json(), {"chosen": alpha, "equal": equal, "self_check": CHECK}


MOVES = (" raises ", " lowers ")


def said_to_shift(given: World) -> bool:
    words = steering_words.shift_title(*_run(given))
    return any(verb in words for verb in MOVES)


def said_to_ablate(given: World) -> bool:
    words = steering_words.ablation_title(*_run(given))
    return any(verb in words for verb in MOVES)


def further_than_random(given: World) -> bool:
    return "further than all" in steering_words.equal_title(_run(given)[2])


def less_than_random(given: World) -> bool:
    return " less than " in steering_words.equal_title(_run(given)[2])


WEIGHTS = WeightSteering(
    model="base",
    deltas=(Contrast(plus="tuned"), Contrast(plus="second")),
    alphas=(-1.0, 1.0),
    draws=3,
    n_boot=400,
)
RATE, MEAN = FIGURES[0], FIGURES[1]


@dataclass(frozen=True)
class Weights:
    """A run of weight steering: who was asked what, and what was measured."""

    bench: Bench
    measured: dict[Key, dict[str, Array]]
    equal: dict[Key, dict[str, Array]]


def weights(own: float, others: float) -> Make:
    """Differences that move a rate and a mean by this much at α = ±1; the first one, and all others."""

    def make(rng: Rng) -> Weights:
        n = 2 * PROMPTS
        luck, base = 0.2 + 0.6 * rng.random(n), rng.normal(size=n)

        def drawn(move: float) -> dict[str, Array]:
            rate = rng.random(n) < np.clip(luck + 0.4 * move, 0, 1)
            mean = base + 0.5 * rng.standard_t(5, n) + move
            return {RATE.name: rate.astype(float), MEAN.name: mean}

        roles = dict.fromkeys(("wanted", "neutral", "answered"), np.ones(n, dtype=bool))
        bench = Bench(WEIGHTS, np.arange(n), roles, np.arange(n) < PROMPTS, np.arange(n), np.full(n, 20))
        sizes = dict.fromkeys(WEIGHTS.series(), others) | {WEIGHTS.series()[0]: own}
        measured: dict[Key, dict[str, Array]] = {UNSTEERED: drawn(0.0)}
        measured |= {(name, a): drawn(a * size) for name, size in sizes.items() for a in WEIGHTS.alphas}
        equal = {(name, 0.7): drawn(0.7 * size) for name, size in sizes.items()}
        return Weights(bench, measured, equal)

    return make


def _curve_titles(given: Weights) -> list[str]:
    table = weight_curves(given.bench, given.measured, list(given.measured))
    first = WEIGHTS.series()[0]
    return [weight_steering_words.curve_title(table, figure, first, 1.0) for figure in (RATE, MEAN)]


def rate_moves(given: Weights) -> bool:
    return any(verb in _curve_titles(given)[0] for verb in MOVES)


def mean_moves(given: Weights) -> bool:
    return any(verb in _curve_titles(given)[1] for verb in MOVES)


def opposite(given: Weights) -> bool:
    return any("; α = −1 " in title for title in _curve_titles(given))


def told_apart(given: Weights) -> bool:
    """Whether any difference is said to do more or less than the first, in the mean's title."""
    keys = list(given.equal)
    table = weight_curves(given.bench, given.measured | given.equal, keys)
    found = against_first(given.bench, given.equal, keys)
    summary = {"equal": {"level": 0.1, "alpha": dict(keys), "apart": found}}
    first, *others = WEIGHTS.series()
    title = weight_steering_words.equal_title(summary, table, MEAN, first, others)
    return any(word in title for other in others for word in (f"{other} more", f"{other} less"))


ENTRIES = (
    Entry(
        "Steering: shift",
        "adding v at α = … raises (or lowers) the log odds",
        said_to_shift,
        {"v moves single prompts, none on average": world(0.0)},
        world(2.0),
    ),
    Entry(
        "Steering: ablation",
        "taking v away raises (or lowers) the log odds",
        said_to_ablate,
        {"v moves single prompts, none on average": world(0.0)},
        world(1.5),
    ),
    Entry(
        "Steering: beyond random",
        "v moves the words further than all random directions",
        further_than_random,
        {
            "v is one of the random directions": world(0.0, 1.0, exchangeable=True),
            "no direction moves them on average": world(0.0),
        },
        world(4.0, 1.0),
    ),
    Entry(
        "Steering: below random",
        "v moves the words less than random directions do",
        less_than_random,
        {
            "v is one of the random directions": world(0.0, 1.0, exchangeable=True),
            "no direction moves them on average": world(0.0),
        },
        world(0.0, 0.3, common=3.0),
    ),
    Entry(
        "Weight steering: rate",
        "raises (or lowers) the share of answers",
        rate_moves,
        {"α moves single prompts, none on average": weights(0.0, 0.0)},
        weights(1.0, 0.0),
    ),
    Entry(
        "Weight steering: mean",
        "raises (or lowers) log p(Yes) − log p(No)",
        mean_moves,
        {"α moves single prompts, none on average": weights(0.0, 0.0)},
        weights(0.8, 0.0),
    ),
    Entry(
        "Weight steering: opposite",
        "… at α; −α does the opposite",
        opposite,
        {"α moves single prompts, none on average": weights(0.0, 0.0)},
        weights(0.8, 0.0),
    ),
    Entry(
        "Weight steering: equal KL",
        "another difference does more (or less) than the first",
        told_apart,
        {"four others that do what the first does": weights(0.8, 0.8)},
        weights(2.0, 0.0),
    ),
)
