"""How often a patch map names a token, or a block of the last one, where the donor is as others are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.patch_map import words
from benchmarks.calibration.entry import Entry, Make
from engine.patch_map.spec import FEWEST_NULLS

ROOM = "app.patch_map"
Grids = NDArray[np.float64]
LAYERS, TOKENS = 8, 12
SUMMARY: dict[str, Any] = {"answers": ["5", "7"], "floor": 1e-6, "recovery_floor": 1e-6}


class Drawn(NamedTuple):
    """Cells of a map with the donor (layers, tokens), and with each unrelated prompt (n, layers, tokens)."""

    donor: Grids
    nulls: Grids


def grids(add: float = 0.0, tail: float = 0.6, nulls: int = FEWEST_NULLS, positive: bool = False) -> Make:
    """Cells of prompts that differ in how much they do at all, more at some tokens and late blocks.

    Args:
        add: to one cell of the donor, standard deviations of its cells.
        tail: log-standard deviation of what a prompt does at all. positive: as a KL is.
    """

    def make(rng: np.random.Generator) -> Drawn:
        where = rng.lognormal(0, 0.5, (1, LAYERS, TOKENS))
        found = rng.normal(0, 1, (1 + nulls, LAYERS, TOKENS)) * where
        found *= rng.lognormal(0, tail, (1 + nulls, 1, 1))
        found = 0.1 * (np.square(found) if positive else found)
        found[0, rng.integers(LAYERS), rng.integers(TOKENS)] += add * found.std()
        return Drawn(found[0], found[1:])

    return make


def paths(add: float = 0.0) -> Make:
    """What the last token brings at each block: it comes up to the prompt's own end by steps.

    Args:
        add: to the donor's end.
    """

    def make(rng: np.random.Generator) -> Drawn:
        steps = rng.exponential(1, (1 + FEWEST_NULLS, LAYERS))
        ends = rng.normal(0.5, 0.4, (1 + FEWEST_NULLS, 1))
        ends[0] += add
        found = ends * np.cumsum(steps, axis=1) / steps.sum(axis=1, keepdims=True)
        return Drawn(found[0][:, None], found[1:, :, None])

    return make


def cells(grid: Grids) -> pl.DataFrame:
    """A grid as the table that a page hands to its words."""
    layers, tokens = (index.ravel() for index in np.indices(grid.shape))
    return pl.DataFrame({"layer": layers, "token": tokens, "text": "a", "value": grid.ravel()})


def most(grid: Grids) -> pl.DataFrame:
    """The largest cell of each unrelated prompt."""
    return pl.DataFrame({"value": grid.max(axis=(1, 2))}, schema={"value": pl.Float64})


def token_named(drawn: Drawn) -> bool:
    """Whether a token is said to bring some of the change."""
    title = words.recovery_title("resid_post", cells(drawn.donor), most(drawn.nulls), SUMMARY, True)
    return " of the change at block " in title


def mover_named(drawn: Drawn) -> bool:
    """Whether a token is said to move the output most."""
    title = words.kl_title("attn_out", cells(drawn.donor), most(drawn.nulls), SUMMARY, False)
    return ", moves the output most: KL " in title


def block_named(drawn: Drawn) -> bool:
    """Whether a block is said from which on the last token brings more than half."""
    table, nulls = cells(drawn.donor), most(drawn.nulls)
    taken = words.handed(table, nulls["value"].to_list(), 1e-6)
    return "on the last token brings more than" in words.profile_title("resid_post", taken, nulls, SUMMARY)


ENTRIES = (
    Entry(
        "Patch map: tokens",
        "a token brings some of the change, at a block",
        token_named,
        {
            "the donor is one of 20 unrelated prompts": grids(),
            "prompts of one size": grids(tail=0.0),
            "18 unrelated prompts": grids(3.0, nulls=FEWEST_NULLS - 1),
        },
        grids(12.0),
    ),
    Entry(
        "Patch map: KL",
        "the output moves most with a token, at a block",
        mover_named,
        {"the donor is one of 20 unrelated prompts": grids(positive=True)},
        grids(60.0, positive=True),
    ),
    Entry(
        "Patch map: last token",
        "from a block on the last token brings more than half",
        block_named,
        {"the donor is one of 20 unrelated prompts": paths()},
        paths(1.2),
    ),
)
CONCLUDES = {
    "words.recovery_title": ("Patch map: tokens",),
    "words.kl_title": ("Patch map: KL",),
    "words.profile_title": ("Patch map: last token",),
}
PHRASES = {"words.change": "", "words.percent": ""}
