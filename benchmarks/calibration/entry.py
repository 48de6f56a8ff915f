"""What a calibrated conclusion is, and how often it is said where it is false and where it is true."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.calibration.gate import GATE, LEVEL
from engine.stats.uncertainty import Interval, wilson

Make = Callable[[np.random.Generator], Any]
"""Draws what a rule reads: arrays, or simulated outcomes."""

DOUBT = 0.001
"""Probability of a count as high as the measured one at a true rate of `LEVEL`; below it, the rule fails
after a number of repeats at which the gate decides nothing."""
PLANTED = "planted"
PLANTS = 200
"""Draws of what is planted: its power has no gate."""


@dataclass(frozen=True)
class Entry:
    """One conclusion.

    Attributes:
        name: short and unique. sentence: the words that a page says.
        rule: whether it is said of what a generator drew.
        nulls: by description, draws where the sentence is false. planted: draws where it is true.
    """

    name: str
    sentence: str
    rule: Callable[[Any], bool]
    nulls: Mapping[str, Make]
    planted: Make

    @property
    def cases(self) -> Mapping[str, Make]:
        """The nulls, then what is planted."""
        return {**self.nulls, PLANTED: self.planted}


@dataclass(frozen=True)
class Measured:
    """How often a conclusion was said.

    Attributes:
        name, case: the entry, and the null's description ("planted" for the planted generator).
        said, repeats: times it was said, of how many.
    """

    name: str
    case: str
    said: int
    repeats: int

    @property
    def rate(self) -> Interval:
        """Share with its Wilson interval."""
        return wilson(self.said, self.repeats)

    @property
    def passes(self) -> bool | None:
        """The gate's answer for a null; None where it decides nothing yet."""
        return GATE.verdict(self.said, self.repeats)

    @property
    def holds(self) -> bool:
        """Whether a null passes or, where the gate decides nothing, may have a rate of `LEVEL`."""
        if self.passes is not None:
            return self.passes
        test = stats.binomtest(self.said, self.repeats, LEVEL, alternative="greater")
        return float(test.pvalue) > DOUBT


def measure(entry: Entry, repeats: int | None = None, seed: int = 0) -> Iterator[Measured]:
    """Every null of an entry, then what is planted; see `measure_case`."""
    for case in entry.cases:
        yield measure_case(entry, case, repeats, seed)


def measure_case(entry: Entry, case: str, repeats: int | None = None, seed: int = 0) -> Measured:
    """How often the entry's sentence is said in one case.

    Args:
        repeats: draws; None draws a null until the gate decides, and what is planted `PLANTS` times.
        seed: every draw has its own, made of this, the two names and its number: neither other entries nor
            the order change it.
    """
    make, own = entry.cases[case], _number(f"{entry.name}: {case}")

    def said(start: int, stop: int) -> int:
        return sum(bool(entry.rule(make(np.random.default_rng([seed, own, i])))) for i in range(start, stop))

    if repeats is not None or case == PLANTED:
        count = PLANTS if repeats is None else repeats
        return Measured(entry.name, case, said(0, count), count)
    total, done = 0, 0
    for stage in GATE.stages:
        total += said(done, stage)
        done = stage
        if GATE.verdict(total, stage) is not None:
            break
    return Measured(entry.name, case, total, done)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
