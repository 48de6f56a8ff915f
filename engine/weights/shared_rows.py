"""Rows of an embedding or unembedding that two models share: those of token strings in both vocabularies.

A fine-tune may have more rows than its base (added tokens, padding to a multiple) or other numbers for the
same strings. Rows are then paired by string, as `engine.prompts.overlap` pairs tokens, never by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

__all__ = ["SharedRows", "shared_rows"]

SHOWN = 4
"""New tokens that a sentence names."""


@dataclass(frozen=True)
class SharedRows:
    """Which rows of two matrices are of the same token strings.

    Attributes:
        base, tuned: row numbers, pair by pair, ascending in the first.
        counts: rows of the two matrices.
        new, gone: token strings of the second vocabulary alone, and of the first alone, that have a row.
    """

    base: Int[np.ndarray, " shared"]
    tuned: Int[np.ndarray, " shared"]
    counts: tuple[int, int]
    new: tuple[str, ...]
    gone: tuple[str, ...]

    def sentence(self) -> str:
        """What is compared, and what the second model has beside it."""
        moved = int((self.base != self.tuned).sum())
        told = f"compared on the {len(self.base)} rows of token strings that both vocabularies have"
        told += f" ({moved} of them under other row numbers)" if moved else ""
        bare = self.counts[1] - len(self.tuned) - len(self.new)
        parts = [_some(self.new, "new"), _some(self.gone, "missing")]
        parts += [f"{bare} rows without a token"] if bare else []
        return "; ".join([told, *filter(None, parts)])


def _some(tokens: tuple[str, ...], what: str) -> str:
    if not tokens:
        return ""
    named = ", ".join(map(repr, tokens[:SHOWN])) + (" …" if len(tokens) > SHOWN else "")
    return f"{len(tokens)} {what} token{'s' if len(tokens) > 1 else ''} ({named})"


def shared_rows(
    base: Mapping[str, int], tuned: Mapping[str, int], counts: tuple[int, int]
) -> SharedRows | None:
    """Pairs the rows of two matrices with a row per token by the tokens' strings.

    Args:
        base, tuned: the vocabularies, string -> row.
        counts: rows of the two matrices; tokens beyond them have none.

    Returns:
        None where the matrices are as long and no shared string has another number: all rows are compared
        then, those without a token too.
    """
    if counts[0] == counts[1] and base == tuned:
        return None
    ours = {token: row for token, row in base.items() if row < counts[0]}
    theirs = {token: row for token, row in tuned.items() if row < counts[1]}
    both = sorted((row, theirs[token]) for token, row in ours.items() if token in theirs)
    pairs = np.array(both, dtype=np.int64).reshape(-1, 2)
    if counts[0] == counts[1] and bool((pairs[:, 0] == pairs[:, 1]).all()):
        return None
    new, gone = (
        tuple(sorted(some.keys() - other.keys(), key=some.__getitem__))
        for some, other in ((theirs, ours), (ours, theirs))
    )
    return SharedRows(pairs[:, 0], pairs[:, 1], counts, new, gone)
