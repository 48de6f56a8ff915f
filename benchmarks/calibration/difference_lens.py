"""How often a token is named where a change speaks of none on average, or where there is rounding alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from app.difference_lens import words
from benchmarks.calibration import real
from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.rounding import DEPTH, Net, rounded
from engine.difference_lens import numbers
from engine.difference_lens.run import limits, read, tables_of
from engine.difference_lens.scan import Draws, Readout
from engine.difference_lens.spec import DifferenceLens
from engine.difference_lens.streams import Streams
from engine.difference_lens.units import opened_by, units_of

ROOM = "app.difference_lens"
Array = NDArray[np.float64]
Rng = np.random.Generator
WIDTH, VOCAB, UNITS, PLACES, DRAWS = 24, 300, 24, 3, 399
SPEC = DifferenceLens(target="tuned", source="base", positions=("decision",), draws=DRAWS)


@dataclass(frozen=True)
class Seen:
    """Streams of both models at some places (places, n, d), the unit of each row, and the noise of each.

    `begins`: what tells the rows' beginnings apart, (places, n); by itself every row.
    """

    target: Array
    source: Array
    unit: NDArray[np.intp]
    noise: tuple[float, ...]
    norm: torch.nn.Module
    rows: Array
    begins: NDArray[np.intp] | None = None


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


FIRST = np.array([*range(24), *[0] * 13, 1, 1, 2])
"""First words of 40 texts, of which 14 begin with one word."""


def beginnings(rng: Rng, shared: float = 0.0) -> Seen:
    """Texts of which many begin with one word: at the first token they have one difference.

    Args:
        shared: of the later variance, what texts of one first word have in common.
    """
    seen, word = (differences(units=len(FIRST))(rng) for _ in range(2))
    begins = np.stack([FIRST, *[np.arange(len(FIRST))] * (PLACES - 1)])
    common = (word.target - word.source)[:, FIRST]
    apart = np.sqrt(1 - shared) * (seen.target - seen.source) + np.sqrt(shared) * common
    apart[0] = common[0]
    return replace(seen, target=seen.source + apart, begins=begins, unit=opened_by(FIRST[:, None].tolist()))


def parted(rng: Rng) -> Seen:
    """The same, where texts of one first word share half of all later variance."""
    return beginnings(rng, 0.5)


def one_beginning(rng: Rng) -> Seen:
    """Texts that begin with one token, up to the rounding of batches."""
    seen = differences(units=len(FIRST))(rng)
    apart = seen.target - seen.source
    apart[0] = apart[0, :1] + 1e-6 * apart[0]
    begins = np.stack([np.zeros(len(FIRST), dtype=int), *[np.arange(len(FIRST))] * (PLACES - 1)])
    return replace(seen, target=seen.source + apart, begins=begins)


def across(rng: Rng) -> Seen:
    """24 pairs that share most of their difference, the two prompts of each in categories of their own."""
    seen = differences(each=2, shared=0.8)(rng)
    pair = [f"p{one}" for one in seen.unit]
    kinds = [f"{'claim' if row % 2 else 'doubt'} {row // 2}" for row in range(len(pair))]
    prompts = pl.DataFrame({"id": [str(row) for row in range(len(pair))], "pair_id": pair, "category": kinds})
    return replace(seen, unit=units_of(SPEC.unit, prompts)[0])


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
    every = [np.arange(len(seen.unit))] * len(seen.noise) if seen.begins is None else seen.begins
    streams = [
        Streams.of("decision", at, ends, seen.unit, begins.tolist())
        for at, (*ends, begins) in enumerate(zip(seen.target, seen.source, every, strict=True))
    ]
    found = [
        read(SPEC, readout, one, noise, draws, random) for one, noise in zip(streams, seen.noise, strict=True)
    ]
    return tables_of(SPEC, None, readout, found, limits(SPEC, found))


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
    "texts of which many begin alike": beginnings,
    "texts of which many begin alike and stay alike": parted,
    "texts that all begin alike": one_beginning,
    "pairs whose prompts are of two categories": across,
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
