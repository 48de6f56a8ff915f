"""Which prompts go through the model together.

A *unit* is what the store commits at once: `unit_prompts` consecutive prompts. Prompts are put in
capture order once, longest first, so that units and the *batches* inside them hold prompts of
nearly equal length and padding costs little. Both are pure functions of the lengths: the same
study gives the same batches on every run, which is what makes a resumed capture byte-identical.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

SHORTEST = 0.75
"""Padding is at most a third of a batch's real tokens."""


def capture_order(lengths: Sequence[Sequence[int]]) -> Int[np.ndarray, "prompts"]:
    """Order of the prompts, longest first; ties keep the order they came in.

    Longest first means that a batch that doesn't fit into memory fails at once, not after an hour.

    Args:
        lengths: tokens per prompt, one row a model (their tokenizers may differ); the longest counts.
    """
    longest = np.max(np.asarray(lengths, dtype=np.int64), axis=0)
    return np.argsort(-longest, kind="stable")


def units(n_prompts: int, unit_prompts: int) -> list[range]:
    """Consecutive ranges of at most `unit_prompts` prompts."""
    return [range(start, min(start + unit_prompts, n_prompts)) for start in range(0, n_prompts, unit_prompts)]


def batches(lengths: Sequence[int], batch_tokens: int, switch: int | None = None) -> list[list[int]]:
    """Split prompts into runs whose padded size stays within `batch_tokens`.

    A prompt shorter than `SHORTEST` of a batch's longest starts a new one: what padding costs grows with
    the difference, what another forward pass costs does not.

    Args:
        lengths: tokens per prompt, in capture order.
        batch_tokens: upper bound of (prompts in the batch) × (longest of them); a longer prompt
            makes a batch of its own.
        switch: prompts up to this length and longer ones never share a batch (`ModelTaps.rotary_switch`).

    Returns:
        Lists of indices into `lengths`, in order, together covering all of them.
    """
    result: list[list[int]] = []
    longest = shortest = 0
    for index, length in enumerate(lengths):
        longest, shortest = max(longest, length), min(shortest, length)
        fits = bool(result) and longest * (len(result[-1]) + 1) <= batch_tokens
        fits = fits and len(sides([shortest, longest], switch)) == 1
        if fits and shortest >= SHORTEST * longest:
            result[-1].append(index)
        else:
            result.append([index])
            longest = shortest = length
    return result


def sides(lengths: Sequence[int], switch: int | None) -> list[list[int]]:
    """Indices of the lengths up to a switch, and of those beyond, as far as there are any."""
    parts: list[list[int]] = [[], []]
    for index, length in enumerate(lengths):
        parts[switch is not None and length > switch].append(index)
    return [part for part in parts if part]


def padded_tokens(lengths: Sequence[int], plan: Sequence[Sequence[int]]) -> int:
    """Token slots that the batches of a plan occupy, padding included."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)
