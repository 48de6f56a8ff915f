"""How often a token is named where a change speaks of none on average, or where there is rounding alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from app.difference_lens import words
from benchmarks.calibration import real
from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.rounding import DEPTH, Net, rounded
from engine.difference_lens import numbers
from engine.difference_lens.run import Streams, limits, read, tables_of
from engine.difference_lens.scan import Draws, Readout
from engine.difference_lens.spec import DifferenceLens

ROOM = "app.difference_lens"
Array = NDArray[np.float64]
Rng = np.random.Generator
WIDTH, VOCAB, UNITS, PLACES, DRAWS = 24, 300, 24, 3, 399
SPEC = DifferenceLens(target="tuned", source="base", positions=("decision",), draws=DRAWS)


@dataclass(frozen=True)
class Seen:
    """Streams of both models at some places (places, n, d), the unit of each row, and the noise of each."""

    target: Array
    source: Array
    unit: NDArray[np.intp]
    noise: tuple[float, ...]
    norm: torch.nn.Module
    rows: Array


def differences(
    law: str = "normal", units: int = UNITS, each: int = 1, shared: float = 0.0, add: float = 0.0
) -> Make:
    """Differences whose mean is 0 in every direction, and logits that are mixtures of them.

    Args:
        law: "normal"; "skewed", independent lognormal numbers; "rare", a few units with most of the change,
            the same way at every place, against a small change the other way in all others.
        each: rows of a unit. shared: of a unit's variance, what its rows have in common.
        add: to every row, along one token, standard deviations.
    """

    def make(rng: Rng) -> Seen:
        def drawn(count: int) -> Array:
            size = (PLACES, count, WIDTH)
            if law == "skewed":
                return rng.lognormal(0, 1, size) - np.exp(0.5)
            if law == "rare":
                amount = rng.lognormal(0, 1, (1, count, 1)) - np.exp(0.5)
                return amount * rng.normal(size=(PLACES, 1, WIDTH)) + 0.5 * rng.normal(size=size)
            return rng.normal(size=size) * rng.lognormal(0, 0.5, (1, count, 1))

        apart = np.sqrt(1 - shared) * drawn(units * each)
        if shared:
            apart += np.sqrt(shared) * np.repeat(drawn(units), each, axis=1)
        rows = rng.normal(size=(VOCAB, WIDTH))
        apart += add * rows[rng.integers(VOCAB)] / np.sqrt(WIDTH)
        source = rng.normal(size=apart.shape)
        unit = np.repeat(np.arange(units), each)
        return Seen(source + apart, source, unit, (0.0,) * PLACES, torch.nn.Identity(), rows)

    return make


def shapes(rng: Rng) -> Seen:
    """A small bfloat16 network and itself in another batch shape."""
    net = Net.of(rng)
    x = rounded(rng.normal(size=(48, net.unembed.shape[0])))
    one, other = net.states(x, 0)[1:], net.states(x, 1)[1:]
    pair = [net.states(x[:6], shape)[1:] for shape in (11, 12)]
    apart = np.linalg.norm(pair[0] - pair[1], axis=2) / np.linalg.norm(pair[0], axis=2)
    noise = tuple(np.sqrt(2) * apart.max(axis=1))
    norm = torch.nn.RMSNorm(x.shape[1], elementwise_affine=False)
    assert len(one) == DEPTH
    return Seen(other, one, np.arange(len(x)), noise, norm, net.unembed.T)


_COPIES = real.copies()


def real_shapes(rng: Rng) -> Seen:
    """SmolLM2's streams in two batch shapes, read by random tokens."""
    held = _COPIES(rng)
    noise = tuple(np.sqrt(2) * np.array(held.rounding["tuned"]["sites"]))
    width = held.own.shape[2]
    norm = torch.nn.RMSNorm(width, elementwise_affine=False)
    rows = rng.normal(size=(VOCAB, width))
    return Seen(held.source, held.own, np.arange(held.own.shape[1]), noise, norm, rows)


def tables(seen: Seen) -> dict[str, pl.DataFrame]:
    """The tables of a run, by its own functions."""
    rows = torch.as_tensor(seen.rows - seen.rows.mean(axis=0), dtype=torch.float32)
    reach = rows.norm(dim=1).double().numpy()
    readout = Readout(rows, seen.norm, torch.ones(rows.shape[1]), reach)
    units = int(seen.unit.max()) + 1
    draws = Draws.of(numbers.flips(units, DRAWS, 0), numbers.resamples(units, DRAWS, 0), "cpu")
    random = readout.random(0)
    found = [
        read(SPEC, readout, Streams("decision", at, *ends, ""), noise, seen.unit, draws, random)
        for at, (ends, noise) in enumerate(
            zip(zip(seen.target, seen.source, strict=True), seen.noise, strict=True)
        )
    ]
    return tables_of(SPEC, None, readout, found, limits(SPEC, found, units))


def named(seen: Seen) -> bool:
    """Whether a title names a token at any place."""
    made, units = tables(seen), (int(seen.unit.max()) + 1, "prompt")
    titles = [
        words.bars_title(("tuned", "base"), at, made["table"].filter(layer=at["layer"]), units)
        for at in made["places"].iter_rows(named=True)
    ]
    return any(" promotes " in title or " suppresses " in title for title in titles)


def standing(seen: Seen) -> bool:
    """Whether the map says that tokens stand out."""
    units = (int(seen.unit.max()) + 1, "prompt")
    return words.map_title(("tuned", "base"), tables(seen)["places"], units).startswith("Tokens stand out")


SKEWED = {
    "no token is moved on average": differences(),
    "lognormal differences": differences("skewed"),
    "a few prompts with most of the change": differences("rare"),
    "the same, 60 prompts": differences("rare", 60),
    "pairs that share most of their difference": differences(each=2, shared=0.8),
    "categories that share most of theirs, few with most of the change": differences(
        "rare", 20, each=4, shared=0.8
    ),
}
ENTRIES = (
    Entry(
        "Difference lens: tokens",
        "promotes, suppresses a token",
        named,
        {**SKEWED, "a copy in another batch shape": shapes, real.SHAPES: real_shapes},
        differences(add=2.5),
    ),
    Entry(
        "Difference lens: map",
        "tokens stand out",
        standing,
        {
            "no token is moved on average": differences(),
            "a few prompts with most of the change": differences("rare"),
            real.SHAPES: real_shapes,
        },
        differences(add=2.5),
    ),
)
CONCLUDES = {
    "words.bars_title": ("Difference lens: tokens",),
    "words.map_title": ("Difference lens: map",),
}
PHRASES = {"words.beyond_random": "", "words.counted": "", "words.place": ""}
