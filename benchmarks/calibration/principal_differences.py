"""How often principal differences tell components, tokens and matrices where there is nothing of the kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.principal_differences import words
from benchmarks.calibration.entry import Entry, Make
from engine.principal_differences import numbers
from engine.principal_differences.numbers import Told
from engine.stats.uncertainty import holm

ROOM = "app.principal_differences"
Array = NDArray[np.float64]
Rng = np.random.Generator
PLACES, UNITS, WIDTH, DRAWS = 3, 40, 48, 59
MODELS = ("base", "tuned")


@dataclass(frozen=True)
class Seen:
    """Differences at some places (n, d) each, their units, the mean square of rounding, and how many of the
    components there are."""

    places: list[Array]
    unit: NDArray[np.intp]
    noise: float = 0.0
    real: int = 0


def noises(law: str, rng: Rng, rows: int) -> Array:
    """Rows of coordinates that have nothing in common, (rows, d)."""
    shape = rows, WIDTH
    if law == "skewed":
        return rng.lognormal(0, 1, shape) * np.exp(rng.normal(size=WIDTH))
    if law == "heavy":
        return rng.standard_t(3, shape)
    if law == "massive":
        scale = np.ones(WIDTH)
        scale[:2] = 30.0
        return rng.normal(size=shape) * scale
    if law == "rows":
        return rng.normal(size=shape) * rng.lognormal(0, 0.7, (rows, 1)) * np.exp(rng.normal(size=WIDTH))
    if law == "rare":
        return (rng.random(shape) < 0.1) * rng.exponential(1, shape)
    return rng.normal(size=shape)


def apart(
    law: str = "normal", members: int = 1, real: int = 0, size: float = 1.0, known: bool = True
) -> Make:
    """Differences without structure but for `real` common directions.

    Args:
        members: prompts of a unit, which change alike but for a little. size: of the directions.
        known: whether these are taken for what there is.
    """

    def make(rng: Rng) -> Seen:
        unit = np.repeat(np.arange(UNITS), members)
        shared = noises(law, rng, UNITS)  # of all places, as a stream hands on what was written
        axes = np.linalg.qr(rng.normal(size=(WIDTH, max(real, 1))))[0].T
        amount = rng.normal(size=(UNITS, max(real, 1))) * size * np.sqrt(WIDTH) * (real > 0)
        found = []
        for _ in range(PLACES):
            own = 0.7 * shared + 0.7 * noises(law, rng, UNITS)
            whole = own + amount @ axes * own.std()
            found.append(whole[unit] + (0.3 * noises(law, rng, len(unit)) if members > 1 else 0.0))
        return Seen(found, unit, real=real * known)

    return make


def rounded(rng: Rng) -> Seen:
    """Rounding of one model in two batch shapes, much of it along one direction.

    The noise that was measured is its mean square.
    """
    unit = np.arange(UNITS)
    axis = np.linalg.qr(rng.normal(size=(WIDTH, 1)))[0].T

    def state() -> Array:
        return rng.normal(size=(UNITS, WIDTH)) + 6 * rng.normal(size=(UNITS, 1)) @ axis

    places = [state() for _ in range(PLACES)]
    return Seen(places, unit, noise=numbers.NOISY * float(np.square(places[0]).sum(axis=1).mean()))


def _counts(seen: Seen) -> list[int]:
    held = [
        Told(one, seen.unit, numbers.principal(one, True, seen.real + 1), seen.noise) for one in seen.places
    ]
    return numbers.counted(held, DRAWS, 0)[0]


def mapped(seen: Seen) -> bool:
    """Whether the map's title, or a place's, tells more components than there are."""
    counts = _counts(seen)
    rows = [
        {
            "position": "decision",
            "layer": at,
            "state": "read",
            "units": UNITS,
            "count": max(count - seen.real, 0),
        }
        for at, count in enumerate(counts)
    ]
    shares = pl.DataFrame({"validation": [0.5], "low": [0.4], "high": [0.6]})
    every = words.map_title(MODELS, pl.DataFrame(rows), "pair")
    each = [words.components_title(MODELS, row, shares, "pair") for row in rows]
    return "has components" in every or any(not one.startswith("No component") for one in each)


@dataclass(frozen=True)
class Read:
    """A direction, and the rows of an unembedding or the output sides of weight differences."""

    direction: Array
    rows: Array


def reading(scales: str = "even", meant: float = 0.0) -> Make:
    """A direction and the rows that read it, with the same large coordinates ("massive")."""

    def make(rng: Rng) -> Read:
        scale = np.ones(WIDTH)
        if scales == "massive":
            scale[:3] = 8.0
        direction = rng.normal(size=WIDTH) * scale
        direction /= np.linalg.norm(direction)
        rows = rng.normal(size=(400, WIDTH)) * scale * rng.lognormal(0, 0.3, (400, 1))
        rows[0] += meant * np.sqrt(WIDTH) * direction
        return Read(direction, rows)

    return make


def tokens(read: Read) -> bool:
    """Whether the title names a token."""
    value = read.rows @ read.direction
    reach = numbers.reach(read.rows, read.direction)
    order = np.argsort(-value)
    shown = np.concatenate([order[:5], order[-5:]])
    table = pl.DataFrame(
        {
            "token_id": shown,
            "text": [f"t{at}" for at in shown],
            "side": np.where(value[shown] > 0, "promoted", "suppressed"),
            "value": value[shown],
            "beyond": np.abs(value[shown]) > reach,
        }
    )
    title = words.tokens_title(1, True, table)
    return " promotes " in title or " suppresses " in title


def sides(scales: str = "even", inside: float = 0.0) -> Make:
    """A direction and six output sides of four directions each, with the same large coordinates ("massive").

    Args:
        inside: of the first side's first direction in the direction.
    """

    def make(rng: Rng) -> Read:
        scale = np.ones(WIDTH)
        if scales == "massive":
            scale[:3] = 8.0
        bases = [np.linalg.qr(rng.normal(size=(WIDTH, 4)) * scale[:, None])[0] for _ in range(6)]
        direction = rng.normal(size=WIDTH) * scale
        direction = direction / np.linalg.norm(direction) + inside * bases[0][:, 0]
        return Read(direction, np.stack(bases))

    return make


def matrices(read: Read) -> bool:
    """Whether the title names a matrix."""
    held = [numbers.written(read.direction, basis) for basis in read.rows]
    table = pl.DataFrame(
        {"layer": range(len(held)), "part": "o_proj", "cosine": [one.cosine for one in held]}
    ).with_columns(p_holm=holm(np.array([one.p for one in held])))
    return "lies further in what" in words.written_title(1, True, table.sort("cosine", descending=True))


ENTRIES = (
    Entry(
        "Principal differences",
        "components exceed unstructured differences, or more than there are do",
        mapped,
        {
            "coordinates have nothing in common": apart(),
            "two coordinates with nearly all of the variance": apart("massive"),
            "prompts and coordinates of unequal size": apart("rows"),
            "lognormal entries": apart("skewed"),
            "Student's t₃": apart("heavy"),
            "few entries differ": apart("rare"),
            "prompts of a pair change alike": apart(members=2),
            "prompts of six change alike": apart("rows", 6),
            "a copy in another batch shape, its rounding along one direction": rounded,
            "two of them": apart(real=2),
            "two large ones": apart(real=2, size=10.0),
            "two in coordinates and prompts of unequal size": apart("rows", real=2),
            "two, two coordinates with nearly all of the noise": apart("massive", real=2),
            "two in lognormal entries": apart("skewed", real=2),
            "two, prompts of a pair change alike": apart(members=2, real=2),
        },
        apart(real=2, known=False),
    ),
    Entry(
        "Principal differences: tokens",
        "a component promotes or suppresses a token",
        tokens,
        {"an unrelated direction": reading(), "with the same large coordinates": reading("massive")},
        reading(meant=1.0),
    ),
    Entry(
        "Principal differences: weights",
        "a component lies further in what ΔW writes than by chance",
        matrices,
        {"an unrelated direction": sides(), "with the same large coordinates": sides("massive")},
        sides(inside=1.0),
    ),
)
CONCLUDES = {
    "words.components_title": ("Principal differences",),
    "words.map_title": ("Principal differences",),
    "words.tokens_title": ("Principal differences: tokens",),
    "words.written_title": ("Principal differences: weights",),
}
PHRASES = {"words.many": "", "words.untold": ""}
FIGURES = {
    "words.prompts_title": "the prompts at both ends of a component, a description of these prompts",
    "panels._none": "a mean square beside that of rounding, where nothing is told of components",
}
