"""Whether two models have a common origin: is one a fine-tune, a merge or a pruned form of the other?

Weights of unrelated models, trained or random, are nearly orthogonal to one another, matrix by matrix,
because nothing ties a coordinate of one to the same coordinate of the other: ‖W_b − W_a‖ = √2 ‖W_a‖ at equal
norms. Training moves a model by a share of its norm only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["ALIKE", "PARTLY", "Matrix", "Relatedness", "Verdict", "relatedness"]

Verdict = Literal["related", "partly", "unrelated", "not comparable", "unknown"]

ALIKE = 0.3
"""Cosine from which on two matrices have a common origin. Random ones of n entries have 0 ± 1/√n: ± 0.03 of
32 × 32, the smallest in use. See `docs/methods/weights.md` for what pairs have."""

PARTLY = 0.1
"""Share of alike matrices from which on models of other shapes or depth are partly related."""


_FIXED_STARTS = ("A_log", "D", "dt_bias")
"""Last names of recurrent parameters that begin as the same numbers in every model (A_log: log 1 … log N)."""


@dataclass(frozen=True)
class Matrix:
    """One matrix of the first model, held against its place in the second.

    Attributes:
        size: ‖W_a‖_F, of the compared rows. apart: ‖W_b − W_a‖_F; None where they can't be compared.
        other: ‖W_b‖_F; None where it isn't known.
        embedding: it has a row per token and is read by token id.
    """

    size: float
    apart: float | None
    other: float | None = None
    embedding: bool = False

    @property
    def cosine(self) -> float:
        """⟨W_a, W_b⟩ / (‖W_a‖ ‖W_b‖); without ‖W_b‖ the least that `apart` allows, NaN where that is nothing.

        With d = ‖W_b − W_a‖ / ‖W_a‖ < 1 no ‖W_b‖ gives less than √(1 − d²).
        """
        if self.apart is None:
            return math.nan
        if self.apart == 0.0:
            return 1.0
        return _cosine(self.size**2, None if self.other is None else self.other**2, self.apart**2)


@dataclass(frozen=True)
class Relatedness:
    """What the weights of two models have in common.

    Attributes:
        verdict: related: all matrices can be compared, and together they are alike. partly: the embedding, or
            some matrices, are alike. unrelated: neither. not comparable: no two matrices have one shape.
            unknown: what is stored doesn't tell.
        distance: ‖W_b − W_a‖ / ‖W_a‖ over all compared matrices; NaN where there are none.
        cosine: of the same; a lower bound where `exact` is False, NaN where nothing is known.
        embedding: cosine of the embeddings' rows of shared tokens; NaN where not known.
        alike, compared, matrices: how many matrices are alike, can be compared, and are in either model.
    """

    verdict: Verdict
    distance: float
    cosine: float
    embedding: float
    alike: int
    compared: int
    matrices: int
    exact: bool


def relatedness(matrices: Sequence[Matrix], additional: int = 0) -> Relatedness:
    """What the weights of two models say of a common origin.

    Args:
        matrices: of the first model. additional: matrices that only the second model has.
    """
    own = [one for one in matrices if one.size > 0]
    pairs = [(one, one.apart) for one in own if one.apart is not None]
    size, apart = sum(one.size**2 for one in own if one.apart is not None), sum(d**2 for _, d in pairs)
    # of an equal matrix the other's norm is its own
    others = [one.size if d == 0 else one.other for one, d in pairs]
    known = [other for other in others if other is not None]
    exact = len(known) == len(others)
    cosine = _cosine(size, sum(o**2 for o in known) if exact else None, apart) if pairs else math.nan
    cosines = [one.cosine for one, _ in pairs]
    embedding = next((one.cosine for one in own if one.embedding), math.nan)
    alike = sum(value >= ALIKE for value in cosines)
    return Relatedness(
        verdict(cosine, embedding, cosines, len(own) + additional),
        math.sqrt(apart / size) if pairs else math.nan,
        cosine,
        embedding,
        alike,
        len(pairs),
        len(own) + additional,
        exact,
    )


def fixed_start(name: str) -> bool:
    """Whether a parameter begins as the same numbers in every model: it tells nothing of an origin."""
    return name.rpartition(".")[2] in _FIXED_STARTS


def verdict(cosine: float, embedding: float, cosines: Sequence[float], total: int) -> Verdict:
    """The verdict, see `Relatedness`.

    Args:
        cosine: over all compared matrices. cosines: of each. total: matrices in either model.
    """
    if not cosines:
        return "not comparable" if total else "unknown"
    alike = sum(value >= ALIKE for value in cosines)
    if cosine >= ALIKE and len(cosines) == total and 2 * alike >= total:
        return "related"
    if embedding >= ALIKE or alike >= max(2, PARTLY * total):
        return "partly"
    return "unknown" if any(map(math.isnan, cosines)) else "unrelated"


def _cosine(size: float, other: float | None, apart: float) -> float:
    """From squared norms ‖a‖², ‖b‖², ‖b − a‖²; of an unknown ‖b‖ the least possible one."""
    if other is None:
        return math.sqrt(1 - apart / size) if apart < size else math.nan
    if other == 0:
        return 0.0
    return (size + other - apart) / (2 * math.sqrt(size * other))
