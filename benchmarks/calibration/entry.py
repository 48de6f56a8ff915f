"""What a calibrated conclusion is, and how often it is said where it is false and where it is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from engine.stats.uncertainty import Interval, wilson

Make = Callable[[np.random.Generator], Any]
"""Draws what a rule reads: arrays, or simulated outcomes."""

LEVEL = 0.05
"""A conclusion may be said this often where it is false."""
DOUBT = 0.001
"""Probability of a count as high as the measured one at a true rate of `LEVEL`; below it, the rule fails."""


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
    def holds(self) -> bool:
        """Whether the rate of a null is at most `LEVEL` within binomial error."""
        test = stats.binomtest(self.said, self.repeats, LEVEL, alternative="greater")
        return float(test.pvalue) > DOUBT


PLANTED = "planted"


def measure(entry: Entry, repeats: int, seed: int = 0, plants: int | None = None) -> Iterator[Measured]:
    """Every null of an entry, then the planted generator.

    Args:
        repeats: draws of each null. plants: draws of the planted generator, `repeats` without.
    """
    for number, (case, make) in enumerate([*entry.nulls.items(), (PLANTED, entry.planted)]):
        count = repeats if case != PLANTED or plants is None else plants
        said = sum(entry.rule(make(np.random.default_rng([seed, number, i]))) for i in range(count))
        yield Measured(entry.name, case, said, count)


def table(entries: Sequence[Entry], found: Sequence[Measured]) -> str:
    """Markdown: one line for each null, with the power of its entry."""
    power = {one.name: one for one in found if one.case == PLANTED}
    sentences = {entry.name: entry.sentence for entry in entries}
    lines = [
        "| Conclusion | Said | Where it is false | False positives | Power |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        if one.case != PLANTED:
            lines.append(
                f"| {one.name} | “{sentences[one.name]}” | {one.case} | {share(one)}"
                f"{'' if one.holds else ' **above 5 %**'} | {share(power[one.name])} |"
            )
    return "\n".join(lines) + "\n"


def share(one: Measured) -> str:
    """ "1.5 % (0.5 to 4.3)"."""
    rate = one.rate
    return f"{100 * rate.estimate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
