"""Titles about prompts, transport over places, weight differences, and R(ℓ) of parts and phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.frame import words
from app.frame.selection import Selection
from app.prompts import fairness, splits
from app.prompts import tables as fairness_queries
from app.synthesis import view as synthesis
from app.transport import words as transport_words
from app.weights import words as weights_words
from benchmarks.calibration import real
from benchmarks.calibration.clusters import TEMPLATES, many
from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.geometry import Updates, isotropic
from engine.residual_updates.numbers import residual_updates, split_updates, update_norms
from engine.stats.spectra import uneven_edge
from engine.stats.uncertainty import Interval, energy_p_value, holm, random_subspace_moments, wilson
from engine.transport import RidgeTransport, TransportScores, evaluate_transport

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rng = np.random.Generator
PAIR = Selection(a="base", b="tuned")


def token_counts(more: float) -> Make:
    """Tokens of 30 prompts under two tokenizers."""

    def make(rng: Rng) -> tuple[Array, Array]:
        size = rng.integers(10, 60, 30).astype(float)
        noise = rng.integers(-4, 5, (2, 30))
        return size + noise[0], np.round(more * size) + noise[1]

    return make


def needs_more(given: tuple[Array, Array]) -> bool:
    one, two = given
    parts = [
        pl.DataFrame({"row": np.arange(30), "value": values}).with_columns(series=pl.lit(name))
        for name, values in (("base", one), ("tuned", two))
    ]
    return " needs " in fairness.lengths_title(pl.concat(parts), PAIR, fairness_queries.token_ratio(one, two))


def copies(across: float, within: float) -> Make:
    """Which of 30 validation and 60 train groups have a near copy in train."""
    return lambda rng: (rng.random(30) < across, rng.random(60) < within)


def leaks(given: tuple[Array, Array]) -> bool:
    across, within = given
    near: dict[str, Interval | None] = {
        "across": wilson(int(across.sum()), len(across)),
        "within": wilson(int(within.sum()), len(within)),
    }
    table = pl.DataFrame({"same": np.zeros(len(across), dtype=bool), "overlap": across.astype(float)})
    return any(f"; {word} than" in splits.leakage_title(table, near) for word in ("more", "fewer"))


def _places(given: Sequence[TransportScores]) -> str:
    names = ("r2_train", "r2_validation", "r2_low", "r2_high", "r2_shuffled_max")
    rows = [{"site": "mlp_out", "layer": i} | {n: getattr(s, n) for n in names} for i, s in enumerate(given)]
    return transport_words.table_title(pl.DataFrame(rows).fill_nan(None), "base", "tuned")


def fits(share: float, last: float | None = None) -> Make:
    """A map's scores at six places of which a share of the variance is linear; another at the last."""

    def make(rng: Rng) -> list[TransportScores]:
        found = []
        for part in [share] * 5 + [share if last is None else last]:
            turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
            x = rng.normal(size=(48, 6))
            y = np.sqrt(part) * x @ turn + np.sqrt(1 - part) * rng.normal(size=(48, 6))
            sides = (x[:32], y[:32], x[32:], y[32:])
            found.append(evaluate_transport(RidgeTransport(), *sides, n_pairings=9))
        return found

    return make


def real_places(rng: Rng) -> list[TransportScores]:
    """The same of five states of a real stream, on halves of its prompts."""
    one, two, _ = real.halves(rng, 48)
    sides = [(x[:32], y[:32], x[32:], y[32:]) for x, y in zip(one, two, strict=True)]
    return [evaluate_transport(RidgeTransport(), *side, n_pairings=9) for side in sides]


def predicted_somewhere(given: Sequence[TransportScores]) -> bool:
    return " at 0 of " not in _places(given)


def best_alone(given: Sequence[TransportScores]) -> bool:
    return ", above every other" in _places(given)


def change(spike: float, heavy: bool = False) -> Make:
    """A weight difference of noise, with one direction beside it."""
    size = (128, 256) if heavy else (48, 96)

    def make(rng: Rng) -> Array:
        noise = rng.laplace(size=size) if heavy else rng.normal(size=size)
        return np.asarray(noise + spike * np.outer(rng.normal(size=size[0]), rng.normal(size=size[1])))

    return make


def uneven(sd: float, rounded: bool = False) -> Make:
    """A weight difference of noise whose rows and columns differ in size by this log-sd.

    Args:
        rounded: it is what rounding to bfloat16's eight digits leaves of a matrix of that kind.
    """

    def make(rng: Rng) -> Array:
        scales = rng.lognormal(0, sd, (128, 1)) * rng.lognormal(0, sd, 256)
        weights = scales * rng.normal(size=(128, 256))
        unit = 2.0 ** (np.frexp(weights)[1] - 8)
        return np.asarray(weights - unit * np.round(weights / unit) if rounded else weights)

    return make


def stands_out(delta: Array) -> bool:
    sigma = np.linalg.svd(delta, compute_uv=False)
    edge = uneven_edge((delta**2).sum(axis=1), (delta**2).sum(axis=0))
    found = {"count": int((sigma > edge).sum()), "directions": 48, "rank": np.nan, "noise": 0.0}
    title = weights_words.spectrum_title({**found, "effective_rank": 40.0}, "tuned", 0, "up_proj")
    return "; none is shown to stand out" not in title


BLOCKS, HEADS, WIDTH = 4, 4, 8


def by_heads(rank: int, held: float = 0.0) -> Make:
    """Differences of four blocks' output projections, heads side by side; one head holds more, if wanted."""

    def make(rng: Rng) -> list[Array]:
        found = []
        for block in range(BLOCKS):
            rows = rng.normal(size=(HEADS * WIDTH, rank)) * rng.exponential(size=rank)
            if block == 0:
                rows[:WIDTH] *= 1 + held
            found.append(rows @ rng.normal(size=(rank, 24)))
        return found

    return make


def head_holds_more(given: Sequence[Array]) -> bool:
    rows: list[dict[str, Any]] = []
    for layer, delta in enumerate(given):
        total, gram = float((delta**2).sum()), delta @ delta.T
        moments = random_subspace_moments(HEADS * WIDTH, WIDTH, 1.0, float((gram**2).sum()) / total**2)
        parts = (delta.reshape(HEADS, -1) ** 2).sum(axis=1) / total
        rows += [
            {"layer": layer, "head": head, "share": share, "p": energy_p_value(share, *moments)}
            for head, share in enumerate(parts.tolist())
        ]
    table = pl.DataFrame(rows)
    table = table.with_columns(p_holm=pl.Series(holm(table["p"].to_numpy())))
    titles = [weights_words.heads_title(table, "tuned", "o", layer) for layer in range(BLOCKS)]
    return any(title.endswith("more than chance") for title in titles)


def halves(stretch: float, alike: float = 0.0, large: int = 0) -> Make:
    """What attention and the MLP of one block write, and Z; attention more inside Z.

    Args:
        alike: how much of either part is the same for all prompts, in a direction unrelated to Z.
        large: so many coordinates are large in attention's output and in Z, which is all that they share.
    """

    def make(rng: Rng) -> tuple[Array, Array, Array]:
        attn, mlp = rng.normal(size=(2, 30, 32)) + alike * rng.normal(size=(2, 1, 32))
        scale = np.where(np.arange(32) < large, 10.0, 1.0)
        z = np.linalg.qr(scale[:, None] * rng.normal(size=(32, 4)))[0]
        attn = attn * scale
        return attn + (stretch - 1) * attn @ z @ z.T, mlp, z

    return make


def part_lies_more(given: tuple[Array, Array, Array]) -> bool:
    found = split_updates([given[0]], [given[1]], given[2], n_boot=400)
    table = {"layer": [0, 0], "series": ["attention", "MLP"]}
    bands = (found.attn, found.mlp)
    ends = {
        name: [float(getattr(b, of)[0]) for b in bands]
        for name, of in (("value", "estimate"), ("low", "low"), ("high", "high"))
    }
    rows = pl.DataFrame(table | ends).with_columns(p=float(found.p_apart[0]))
    return "lies more in Z than" in words.split_title(rows, "base", 0)


def phases_told(given: Updates) -> bool:
    k = given.z.shape[1]
    norms = update_norms(given.deltas, given.z, [k])
    found = residual_updates(norms, k, groups=many(given.templates), n_boot=200)
    return synthesis.told_apart(found) is not None


def own_blocks(noise: float) -> Make:
    """How alike six blocks of two models are, six by six: related blocks, or none."""

    def make(rng: Rng) -> Array:
        found: Array = noise * rng.random((6, 6)) + (1 - noise) * np.eye(6)
        return found

    return make


def each_its_own(values: Array) -> bool:
    layers = [{"layer": i, "other": j, "value": values[i, j]} for i in range(6) for j in range(6)]
    return words.heatmap_title(pl.DataFrame(layers), "base", "tuned").startswith("Each block of")


ENTRIES = (
    Entry(
        "Token counts",
        "needs … times the tokens",
        needs_more,
        {"as many": token_counts(1.0)},
        token_counts(1.2),
    ),
    Entry(
        "Leakage",
        "more (or fewer) copies than train texts are among themselves",
        leaks,
        {"none is a copy, or few": copies(0.05, 0.05), "every other is one": copies(0.5, 0.5)},
        copies(0.5, 0.02),
    ),
    Entry(
        "Transport: places",
        "new prompts are predicted at some place",
        predicted_somewhere,
        {"unrelated at six places": fits(0.0), real.HALVES: real_places},
        fits(0.0, 0.9),
    ),
    Entry(
        "Transport: best place",
        "the first on train … above every other",
        best_alone,
        {"six places alike": fits(0.6), "unrelated at six places": fits(0.0), real.HALVES: real_places},
        fits(0.4, 0.98),
    ),
    Entry(
        "Weights: directions",
        "directions stand out of a random difference",
        stands_out,
        {
            "noise": change(0.0),
            "noise with heavy tails": change(0.0, heavy=True),
            "noise in uneven rows and columns": uneven(0.1),
            "in very uneven ones": uneven(1.0),
            "rounding to bfloat16": uneven(0.1, rounded=True),
        },
        change(0.6),
    ),
    Entry(
        "Weights: heads",
        "heads hold more of the difference than chance",
        head_holds_more,
        {"dense, in all heads alike": by_heads(24), "of rank 2, in all heads alike": by_heads(2)},
        by_heads(8, 2.0),
    ),
    Entry(
        "R(ℓ): attention and MLP",
        "attention's output lies more in Z than the MLP's (or less)",
        part_lies_more,
        {
            "alike": halves(1.0),
            "each the same for all prompts": halves(1.0, 2.0),
            "attention and Z share a large coordinate": halves(1.0, large=1),
            "they share four": halves(1.0, large=4),
        },
        halves(2.0),
    ),
    Entry(
        "R(ℓ): phases",
        "R of one update lies above that of another",
        phases_told,
        {
            "alike at six blocks": isotropic(32, 4),
            f"alike at six blocks, {TEMPLATES}": isotropic(32, 4, templates=24),
        },
        isotropic(32, 4, 4.0),
    ),
    Entry(
        "CKA: blocks",
        "each block is most similar to the same block",
        each_its_own,
        {"unrelated blocks": own_blocks(1.0)},
        own_blocks(0.4),
    ),
)
