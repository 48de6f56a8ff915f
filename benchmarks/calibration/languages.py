"""Titles of two-language studies: energy and lengthscales over blocks, tables of Z-patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.ard import words as ard_words
from app.geometry import words as geometry_words
from app.z_patching import words as z_words
from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.geometry import basis
from benchmarks.calibration.patched import BROADCAST, CONTENT, LARGE, RANDOM, SCAFFOLD, answers, same
from benchmarks.calibration.scales import EVEN, Coordinates, uneven
from benchmarks.calibration.scales import basis as kept
from engine.ard.spectrum import conclusion, energy_overlap, overlap, start_p
from engine.geometry.language_energy import LanguageEnergy, language_energy
from engine.stats.uncertainty import holm
from engine.z_patching.numbers import Changes, paired_p, verdict

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rng = np.random.Generator


def shifts_of_blocks(inside: float, coordinates: Coordinates = EVEN) -> Make:
    """The language shift of eight blocks, each with its own Z; some of it inside the last one's."""

    def make(rng: Rng) -> list[LanguageEnergy]:
        from engine.geometry.separation import Problems

        found, scale = [], coordinates.scale(rng, 24)
        for block in range(8):
            z, one = kept(rng, scale, 3, coordinates), rng.normal(size=(8, 24))
            more = inside * rng.normal(size=3) @ z.T if block == 7 else 0.0
            moved = coordinates.draw(rng, 24) + 0.2 * coordinates.draw(rng, 8, 24)
            moved = moved * scale + more
            found.append(language_energy(Problems.of(one, one + moved), {3: z}, n_boot=2))
        return found

    return make


def energy_somewhere(given: Sequence[LanguageEnergy]) -> bool:
    p, low = (np.array([getattr(one, name)[0] for one in given]) for name in ("more", "less"))
    ratio = np.array([float(one.ratio.estimate[0]) for one in given])
    title = geometry_words.energy_every_title("base", ratio, p, low, range(len(given)))
    return "than random subspaces do" in title


def held_out(found: int, blocks: int = 6) -> Make:
    """Held-out p of fits at six blocks: one of 200 ranks, small where something is there."""
    return lambda rng: [1 / 200 if i < found else float(rng.integers(1, 201)) / 200 for i in range(blocks)]


def pairs_somewhere(p: list[float]) -> bool:
    said = [conclusion("graded", collapsed=False, p=q) for q in holm(np.array(p)).tolist()]
    rows = [{"layer": i, "found": one, "under": 12} for i, one in enumerate(said)]
    return "lengthscales pair held-out problems at" in ard_words.layers_title("base", rows, "outlier")


class Survivors(NamedTuple):
    """Surviving dimensions of fits at six blocks, each with its p."""

    p: list[float]
    start: str
    starts: int = 0


def blocks_of_survivors(among: bool) -> Make:
    """Ten of 64 dimensions at six blocks; at one of them most are where Z has its energy, if wanted."""

    def make(rng: Rng) -> Survivors:
        found = []
        for block in range(6):
            z, kept = basis(rng, 64, 8), np.zeros(64, dtype=bool)
            if among and block == 0:
                kept[np.argsort(-(z**2).sum(axis=1))[:6]] = True
            kept[rng.choice(np.flatnonzero(~kept), 10 - int(kept.sum()), replace=False)] = True
            found.append(overlap(kept, z).p)
        return Survivors(found, "cold")

    return make


def warm_starts(own: float, count: int = 99) -> Make:
    """Fits that keep some of the subspace that they start from: Z, and random ones, at two blocks."""

    def make(rng: Rng) -> Survivors:
        def kept(strength: float) -> int:
            energy = rng.exponential(size=64)
            survives = rng.random(64) < 1 / (1 + np.exp(3 - strength * energy))
            return energy_overlap(survives, energy, 8).shared

        found = []
        for block in range(2):
            z = kept(own if block == 0 else 1.0)
            found.append(start_p(z, [kept(1.0) for _ in range(count)]))
        return Survivors(found, "svd", count)

    return make


def survivors_are_z(given: Survivors) -> bool:
    adjusted = holm(np.array(given.p))
    rows = [
        {"layer": layer, "survivors": 10, "p_adjusted": p, "starts": given.starts}
        for layer, p in enumerate(adjusted)
    ]
    title = ard_words.overlap_title("base", 8, rows, given.start)
    return " is not shown " not in title and " are not shown " not in title


def cells(*made: Make) -> Make:
    """The outcomes of a table of Z-patching, cell by cell."""
    return lambda rng: [make(rng) for make in made]


def _compared(given: Sequence[dict[str, Changes]]) -> list[str]:
    rows = []
    for number, outcomes in enumerate(given):
        found = verdict(outcomes)
        tests = {name: asdict(test) for name, test in found.tests.items()}
        rows.append({"layer": number // 3, "k": 4 * (1 + number % 3), "tests": tests})
    return [z_words.compared_title(rows, outcome) for outcome in ("answer", "language")]


def cell_stands(given: Sequence[dict[str, Changes]]) -> bool:
    """Z (or its complement) is said to change an outcome at some cell, beyond its controls."""
    said = ("Z changes the", ", beyond its", "not everywhere beyond")
    return any(words_ in title for title in _compared(given) for words_ in said)


def cell_differs(given: Sequence[dict[str, Changes]]) -> bool:
    return not all(title.startswith("Z and Z⊥ are nowhere") for title in _compared(given))


def right(ahead: float) -> Make:
    """The same 40 problems in two languages, unpatched."""

    def make(rng: Rng) -> tuple[Flags, Flags]:
        luck = rng.random(40)
        return rng.random(40) < luck, rng.random(40) < np.minimum(luck + ahead, 1)

    return make


def better_in_one(given: tuple[Flags, Flags]) -> bool:
    one, two = given
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    only = [int((one & ~two).sum()), int((two & ~one).sum())]
    found = {"accuracy": {"en": share, "zh": share}, "only": only, "p": paired_p(one, two)}
    return "the model is better in" in z_words.baseline({"baseline": found, "n": 40})


NOTHING = same(0.5)
SIX_ALIKE = cells(*[answers(NOTHING, NOTHING)] * 6)

ENTRIES = (
    Entry(
        "Language energy: blocks",
        "Z of some block holds more (or less) of the shift than random subspaces do",
        energy_somewhere,
        {
            "every block's Z is random": shifts_of_blocks(0.0),
            **uneven(lambda coordinates: shifts_of_blocks(0.0, coordinates)),
        },
        shifts_of_blocks(6.0),
    ),
    Entry(
        "Lengthscales: blocks",
        "lengthscales pair held-out problems at block …",
        pairs_somewhere,
        {"fits of noise at six blocks": held_out(0)},
        held_out(2),
    ),
    Entry(
        "Overlap: blocks",
        "survivors are dimensions of Z more often than by chance at block …",
        survivors_are_z,
        {"random dimensions at six blocks": blocks_of_survivors(False)},
        blocks_of_survivors(True),
    ),
    Entry(
        "Overlap: warm start",
        "a start from Z keeps more of itself than random starts do",
        survivors_are_z,
        {"Z keeps what any subspace keeps": warm_starts(1.0)},
        warm_starts(6.0),
    ),
    Entry(
        "Z-patching: cells",
        "Z (or Z⊥) changes an outcome at block …, beyond its controls",
        cell_stands,
        {
            "every patch breaks half, six cells": SIX_ALIKE,
            "Z is a random subspace, one cell": cells(answers(RANDOM, RANDOM, 1.0)),
        },
        cells(*[answers(NOTHING, NOTHING)] * 5, answers(CONTENT, SCAFFOLD)),
    ),
    Entry(
        "Z-patching: differ",
        "Z and Z⊥ differ at some cell",
        cell_differs,
        {"every patch breaks half, six cells": SIX_ALIKE},
        cells(*[answers(NOTHING, NOTHING)] * 5, answers(BROADCAST, {**BROADCAST, "rest": LARGE})),
    ),
    Entry(
        "Z-patching: baseline",
        "the model is better in one language",
        better_in_one,
        {"alike": right(0.0)},
        right(0.5),
    ),
)
