"""How often diff mining names a word where two models say all of them alike on average."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.diff_mining import words
from benchmarks.calibration.entry import Entry, Make
from engine.diff_mining.run import Change
from engine.diff_mining.spec import DiffMining

ROOM = "app.diff_mining"
Array = NDArray[np.float64]
Rng = np.random.Generator
VOCAB, UNITS, NOISE = 300, 24, 0.05
SPEC = DiffMining(target="tuned", source="base")


@dataclass(frozen=True)
class Said:
    """Probabilities of each unit in both models (G, V), and their measured rounding."""

    target: Array
    source: Array
    rounding: dict[str, dict[str, Any]] = field(default_factory=dict)


def ratios(law: str = "normal", units: int = UNITS, add: float = 0.0) -> Make:
    """Log ratios of mean 0 for every token, those of a unit mixtures of eight numbers and some of their own.

    Args:
        law: "normal", with units of unequal size; "skewed", lognormal; "rare", a few units with most of the
            change against a small one the other way in all others; "one", a single unit in five says other
            tokens altogether.
        add: to a token that is said often.
    """

    def drawn(rng: Rng) -> Array:
        if law == "skewed":
            return rng.lognormal(0, 1, (units, 8)) - np.exp(0.5)
        if law == "rare":
            amount = rng.lognormal(0, 1, (units, 1)) - np.exp(0.5)
            return amount * rng.normal(size=(1, 8)) + 0.5 * rng.normal(size=(units, 8))
        if law == "one":
            return rng.normal(size=(units, 8)) * np.where(rng.random((units, 1)) < 0.2, 5.0, 0.1)
        return rng.normal(size=(units, 8)) * rng.lognormal(0, 0.5, (units, 1))

    def make(rng: Rng) -> Said:
        source = rng.dirichlet(0.3 * np.ones(VOCAB), size=units) + 1e-6
        ratio = 0.3 * drawn(rng) @ rng.normal(size=(8, VOCAB)) + 0.1 * rng.normal(size=(units, VOCAB))
        ratio[:, source.mean(axis=0).argmax()] += add
        return Said(source * np.exp(ratio / 2), source * np.exp(-ratio / 2))

    return make


def counts(rng: Rng) -> Said:
    """Two samples of one model's words: many tokens are said in few texts."""
    law = rng.dirichlet(0.05 * np.ones(VOCAB), size=UNITS)
    target, source = (
        np.array([rng.multinomial(400, own) for own in law]) / 400 + rng.exponential(1e-4, law.shape)
        for _ in range(2)
    )
    return Said(target, source)


def shapes(common: float = 0.0) -> Make:
    """One model beside itself, log-probabilities moved by the rounding that was measured.

    Args:
        common: share of its variance that all units have in common, token by token.
    """

    def make(rng: Rng) -> Said:
        source = rng.dirichlet(0.3 * np.ones(VOCAB), size=UNITS)

        def moved() -> Array:
            own, shared = rng.normal(size=source.shape), rng.normal(size=(1, VOCAB))
            return source * np.exp(NOISE * (np.sqrt(1 - common) * own + np.sqrt(common) * shared))

        kl = {"kl": NOISE**2 / 2, "kl_worst": NOISE**2}
        return Said(moved(), moved(), {"tuned": kl, "base": kl})

    return make


def named(seen: Said) -> bool:
    """Whether the title names a token."""
    change = Change.of(SPEC, seen.target, seen.source, seen.rounding)
    facts = {"equal": False, "units": len(seen.target), "unit": "text", "limited": change.held.known}
    facts |= {"kl": 1.0, "floor": 0.0, "measured": bool(seen.rounding)}  # told by tokens alone
    title = words.tokens_title(("tuned", "base"), change.table(None), facts)
    return " says more " in title or " says less " in title


ENTRIES = (
    Entry(
        "Diff mining: tokens",
        "says a token more, or less",
        named,
        {
            "every token is said alike on average": ratios(),
            "lognormal ratios": ratios("skewed"),
            "a few texts with most of the change": ratios("rare"),
            "the same, 60 texts": ratios("rare", 60),
            "a text in five says other words": ratios("one"),
            "two samples of one model's words": counts,
            "a copy in another batch shape": shapes(),
            "the same, much of its rounding common to all texts": shapes(0.3),
        },
        ratios(add=2.0),
    ),
)
CONCLUDES = {"words.tokens_title": ("Diff mining: tokens",)}
PHRASES = {"words.times": ""}
FIGURES = {"words.topics_title": "topics that resamples find again, at a stated cosine"}
