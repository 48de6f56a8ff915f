"""When a null's count of false positives is enough to pass it or to fail it.

A group-sequential binomial test of a rate of at most `LEVEL` against one of `WRONG` or more (Jennison &
Turnbull 2000, ch. 12): after each stage n of `STAGES` a null passes with few false positives, fails with
many, and is drawn on in between. Bounds spend the two errors by functions of n/N (Lan & DeMets 1983):
passing at a rate of `WRONG` with √(n/N) of `MISSED`, failing at `LEVEL` with n/N of `ALARM`. All
probabilities are exact, by the recursion of Armitage, McPherson & Rowe (1969) over the counts that a stage
leaves open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

LEVEL = 0.05
"""A conclusion may be said this often where it is false."""
WRONG = 0.07
"""A rate that fails."""
MISSED = 0.05
"""Most probability of passing at a rate of `WRONG`."""
ALARM = 0.002
"""Most probability of failing at a rate of `LEVEL` before the last stage."""
STAGES = (100, 200, 400, 700, 1000, 1500, 2000, 3000)
"""Repeats after which a null is judged."""


@dataclass(frozen=True)
class Operating:
    """What a gate does at one true rate.

    Attributes:
        passes: probability of passing. repeats: expected number of repeats.
    """

    passes: float
    repeats: float


@dataclass(frozen=True)
class Gate:
    """Bounds of a sequential gate.

    Attributes:
        stages: (s,) numbers of repeats, ascending.
        most: (s,) counts up to which a null passes there, −1 for none.
        least: (s,) counts from which it fails; at the last stage most + 1, so that every null is decided.
    """

    stages: tuple[int, ...]
    most: tuple[int, ...]
    least: tuple[int, ...]

    @classmethod
    def of(
        cls,
        stages: tuple[int, ...] = STAGES,
        level: float = LEVEL,
        wrong: float = WRONG,
        missed: float = MISSED,
        alarm: float = ALARM,
    ) -> Gate:
        """The widest bounds that spend no more than the two errors."""
        most: list[int] = []
        least: list[int] = []
        at_level, at_wrong = np.ones(1), np.ones(1)
        alarmed, let_by = 0.0, 0.0
        for before, n in zip((0, *stages[:-1]), stages, strict=True):
            at_level, at_wrong = (
                _drawn(open_, n - before, rate) for open_, rate in ((at_level, level), (at_wrong, wrong))
            )
            part = n / stages[-1]
            up_to = int((let_by + np.cumsum(at_wrong) <= missed * part**0.5).sum()) - 1
            beyond = int((alarmed + np.cumsum(at_level[::-1])[::-1] > alarm * part).sum())
            most.append(up_to)
            least.append(up_to + 1 if n == stages[-1] else max(beyond, up_to + 1))
            let_by += float(at_wrong[: most[-1] + 1].sum())
            alarmed += float(at_level[least[-1] :].sum())
            at_level, at_wrong = (_kept(open_, most[-1], least[-1]) for open_ in (at_level, at_wrong))
        return cls(stages, tuple(most), tuple(least))

    def verdict(self, said: int, repeats: int) -> bool | None:
        """Whether a count passes; None between the bounds, and where `repeats` is no stage."""
        if repeats not in self.stages:
            return None
        at = self.stages.index(repeats)
        if said <= self.most[at]:
            return True
        return False if said >= self.least[at] else None

    def operating(self, rate: float) -> Operating:
        """Probability of passing, and expected repeats, at a true rate; exact."""
        passes, repeats, open_ = 0.0, 0.0, np.ones(1)
        for before, n, most, least in zip(
            (0, *self.stages[:-1]), self.stages, self.most, self.least, strict=True
        ):
            repeats += (n - before) * float(open_.sum())
            open_ = _drawn(open_, n - before, rate)
            passes += float(open_[: most + 1].sum())
            open_ = _kept(open_, most, least)
        return Operating(passes, repeats)

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Stage, counts up to which a null passes, and from which it fails."""
        yield from zip(self.stages, self.most, self.least, strict=True)


def _drawn(open_: Array, more: int, rate: float) -> Array:
    """Probabilities of the counts 0 … after `more` further repeats."""
    return np.convolve(open_, stats.binom.pmf(np.arange(more + 1), more, rate))


def _kept(counts: Array, most: int, least: int) -> Array:
    """The same without the counts that are decided."""
    left = counts.copy()
    left[: most + 1] = 0.0
    left[least:] = 0.0
    return left


GATE = Gate.of()
