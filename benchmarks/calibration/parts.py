"""Titles about heads and ranks: what parts of an effect do alone, together, and beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.heads import words as heads_words
from app.rank import words as rank_words
from benchmarks.calibration.effects import PLANTED_HEADS, Effect, Pushes, pushes, saturated
from benchmarks.calibration.entry import Entry, Make
from engine.heads import numbers as heads
from engine.heads.numbers import Heads
from engine.rank.numbers import needed_for, rank_grid, sign_flipped_spectra
from engine.rank.report import RankData, choice, describe_spectra
from engine.rank.report import table as rank_table
from engine.rank.spec import RankSweep
from engine.rank.vectors import Cell
from engine.stats.means import bootstrap_means
from engine.stats.uncertainty import Band

Array = NDArray[np.float64]
Rng = np.random.Generator
BOOT = 400
WHERE = {"target": "tuned", "source": "base", "layer": 4}
EQUAL, ONE = [0.5] * 8, [0.2] * 7 + [2.0]


def additive(push: Array, subset: Heads) -> Array:
    """Every head does its part, whatever the others do."""
    found: Array = 0.5 * (push[sorted(subset)] ** 2).sum(0)
    return found


def mutual(spread: float, n: int = 120) -> Make:
    """Equal heads; every pair does something together at each prompt, skewed, and 0 on average."""

    def make(rng: Rng) -> Pushes:
        extra = spread * (rng.exponential(size=(8, 8, n // 2)) - 1)

        def effect(push: Array, subset: Heads) -> Array:
            return additive(push, subset) + sum(extra[pair] for pair in combinations(sorted(subset), 2))

        return Pushes(pushes(EQUAL, n=n)(rng).push, effect)

    return make


def _ends(found: Band, name: str = "coverage", prefix: str = "") -> dict[str, Array]:
    return {f"{prefix}{name}": found.estimate, f"{prefix}low": found.low, f"{prefix}high": found.high}


class Halves(NamedTuple):
    """KLs of subsets on validation prompts, which titles tell of."""

    push: Array
    effect: Effect
    whole: Array

    def kl(self, subsets: Sequence[Heads]) -> Array:
        """(subsets, n)."""
        return np.stack([self.effect(self.push, subset) for subset in subsets])

    @property
    def every(self) -> Heads:
        return Heads(range(len(self.push)))

    @property
    def alone(self) -> Array:
        return self.kl([Heads([head]) for head in sorted(self.every)])

    @property
    def summary(self) -> dict[str, Any]:
        return {"effect": {"kl": float(self.whole.mean())}, "top": [{"layer": 0, "head": 0}]}


def validation(given: Pushes) -> Halves:
    return _half(given, given.push[:, given.push.shape[1] // 2 :])


def train(given: Pushes) -> Halves:
    """The prompts that heads are chosen on."""
    return _half(given, given.push[:, : given.push.shape[1] // 2])


def _half(given: Pushes, push: Array) -> Halves:
    return Halves(push, given.effect, given.effect(push, Heads(range(len(push)))))


def more_than_any_head(given: Pushes) -> bool:
    at = validation(given)
    table = pl.DataFrame({"head": sorted(at.every)} | _ends(heads.coverages(at.alone, at.whole, n_boot=BOOT)))
    table = table.with_columns(coverage_train=train(given).alone.mean(1))
    return "more than any other head" in heads_words.singles_title(table, WHERE, at.summary)


def needed(given: Pushes) -> bool:
    at = validation(given)
    left = heads.coverages(at.kl([at.every - {head} for head in sorted(at.every)]), at.whole, n_boot=BOOT)
    table = pl.DataFrame({"head": sorted(at.every)} | _ends(left, prefix="without_"))
    return "be left out" in heads_words.without_title(table, WHERE, at.summary)


def _pairs(at: Halves) -> tuple[dict[str, Any], Array]:
    """Which heads each pair is of, and its KL."""
    pairs = list(combinations(sorted(at.every), 2))
    return {"first": [i for i, _ in pairs], "second": [j for _, j in pairs]}, at.kl([Heads(p) for p in pairs])


def more_than_any_pair(given: Pushes) -> bool:
    at = validation(given)
    which, both = _pairs(at)
    table = pl.DataFrame(which | _ends(heads.coverages(both, at.whole, n_boot=BOOT)))
    table = table.with_columns(coverage_train=_pairs(train(given))[1].mean(1))
    return "more than any other pair" in heads_words.both_title(table, WHERE, at.summary)


def interact(given: Pushes) -> bool:
    at = validation(given)
    which, both = _pairs(at)
    extra = both - at.alone[which["first"]] - at.alone[which["second"]]
    together = heads.coverages(extra, at.whole, together=True, n_boot=2000)
    table = pl.DataFrame(which | _ends(together, "interaction", "interaction_"))
    table = table.rename({"interaction_interaction": "interaction"})
    return not heads_words.pairs_title(table, WHERE, at.summary).startswith("No pair")


def moves_most(given: Pushes) -> bool:
    at = validation(given)
    found = bootstrap_means(at.alone, n_boot=BOOT)
    places = {"layer": np.arange(len(at.push)) // 4, "head": np.arange(len(at.push)) % 4}
    cells = pl.DataFrame(places | {"kl": found.estimate, "kl_low": found.low, "kl_high": found.high})
    cells = cells.with_columns(kl_train=train(given).alone.mean(1))
    return "more than any other head" in heads_words.cells_title(cells, WHERE, at.summary)


def most_at_one_block(given: Pushes) -> bool:
    at = validation(given)
    found = bootstrap_means(at.alone, n_boot=BOOT)
    table = pl.DataFrame({"layer": sorted(at.every), "shown": True} | _ends(found, "kl"))
    table = table.with_columns(kl_train=train(given).alone.mean(1))
    title = heads_words.kl_title(table, WHERE)
    return any(f"most at block {layer}:" in title for layer in at.every)


SWEEP = RankSweep(
    target="tuned",
    source="base",
    component="resid_post",
    layer=4,
    position="decision",
    alphas=(1.0,),
    draws=2,
    n_boot=BOOT,
)
FULL, PROMPTS = 32, 30


def ranks(needed_: int, random_as_well: bool = False) -> Make:
    """KLs of a sweep: the effect, and what a map saves, grow evenly until `needed_` directions are in.

    Args:
        random_as_well: whether random directions do as much.
    """

    def make(rng: Rng) -> RankData:
        ks, n = rank_grid(FULL), 2 * PROMPTS
        ease = rng.lognormal(0, 0.7, n)

        def kl(size: float) -> Array:
            return np.asarray(size * ease * rng.lognormal(0, 0.1, n))

        def share(k: int, of: int) -> float:
            return min(1.0, k / of)

        rows = [(Cell("raw", 0, 0, 1.0), kl(2.0)), (Cell("mapped", 0, 0, 1.0), kl(1.0))]
        rows += [(Cell("truncated", 0, k, 1.0), kl(2.0 - share(k, needed_))) for k in ks]
        rows += [(Cell("projector", 0, k, 1.0), kl(share(k, needed_))) for k in ks]
        of = needed_ if random_as_well else FULL
        rows += [(Cell("random", draw, k, 1.0), kl(share(k, of))) for draw in (1, 2) for k in ks]
        cells, values = [cell for cell, _ in rows], np.array([v for _, v in rows])
        return RankData(SWEEP, cells, values, np.arange(n), np.arange(n) < PROMPTS, 1e-6)

    return make


def _quarter(title: str, words: str) -> bool:
    """Whether a quarter of the full rank or fewer directions are said to do something."""
    return words in title and 4 * int(title.split(words, maxsplit=1)[0].rsplit(maxsplit=1)[-1]) <= FULL


def rank_is_enough(data: RankData) -> bool:
    summary = choice(data)[1] | {"full_rank": FULL, "reference": "raw"}
    return _quarter(rank_words.path_title(rank_table(data), summary), f" of {FULL} is enough")


def _swap_title(data: RankData) -> str:
    summary = choice(data)[1] | {"basis_size": FULL}
    return rank_words.projector_title(rank_table(data), summary, 1.0)


def few_carry(data: RankData) -> bool:
    title = _swap_title(data)
    return f" of {FULL} carry the effect" in title and 4 * int(title.split()[0]) <= FULL


def spectrum(rank: int, noise: float = 1.0) -> Make:
    """Rows of noise, and of a few directions beside it, if wanted."""

    def make(rng: Rng) -> Array:
        rows = noise * rng.normal(size=(60, 32))
        return np.asarray(rows + rng.normal(size=(60, rank)) @ rng.normal(size=(rank, 32)))

    return make


def _spectrum_title(rows: Array) -> str:
    sigma = np.linalg.svd(rows, compute_uv=False)
    table, counts = describe_spectra({"rows": (sigma, sign_flipped_spectra(rows, 20, 0))})
    assert counts["rows"]["needed"] == needed_for(sigma)
    return rank_words.spectrum_title(table, counts["rows"], "the rows", "random signs")


def falls_steeply(rows: Array) -> bool:
    return "the steepest fall" in _spectrum_title(rows)


ENTRIES = (
    Entry(
        "Heads: alone",
        "head … alone covers …; more than any other head",
        more_than_any_head,
        {"equal heads": pushes(EQUAL), "each head does it all": pushes(EQUAL, saturated)},
        pushes(ONE),
    ),
    Entry(
        "Heads: needed",
        "head … can't be left out",
        needed,
        {"each head does it all": pushes(EQUAL, saturated)},
        pushes(PLANTED_HEADS),
    ),
    Entry(
        "Heads: pairs",
        "heads … and … cover …; more than any other pair",
        more_than_any_pair,
        {"equal heads": pushes(EQUAL)},
        pushes([0.05] * 6 + [1.0, 1.0]),
    ),
    Entry(
        "Heads: interaction",
        "heads … and … together do more (or less) than their sum",
        interact,
        {
            "what heads do adds up": pushes(EQUAL, additive),
            "pairs do something together, nothing on average": mutual(0.1),
            "the same on 24 prompts": mutual(0.1, 48),
        },
        pushes(PLANTED_HEADS),
    ),
    Entry(
        "Heads: map",
        "head … of block … moves the model more than any other head",
        moves_most,
        {"equal heads": pushes(EQUAL)},
        pushes(ONE),
    ),
    Entry(
        "Heads: blocks",
        "all heads together move the model most at block …",
        most_at_one_block,
        {"equal blocks": pushes(EQUAL)},
        pushes(ONE),
    ),
    Entry(
        "Rank: map",
        "rank k of full is enough (a quarter or less)",
        rank_is_enough,
        {"every direction adds as much": ranks(FULL), "half of the directions are needed": ranks(FULL // 2)},
        ranks(4),
    ),
    Entry(
        "Rank: swap",
        "k directions carry the effect (a quarter or less)",
        few_carry,
        {"every direction adds as much": ranks(FULL), "half of the directions are needed": ranks(FULL // 2)},
        ranks(4),
    ),
    Entry(
        "Rank: spectrum",
        "the steepest fall is behind direction …",
        falls_steeply,
        {"noise": spectrum(0), "directions within the noise": spectrum(3, 3.0)},
        spectrum(3, 0.05),
    ),
)
