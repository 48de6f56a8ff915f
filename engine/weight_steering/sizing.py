"""How long a run of weight steering takes on one CPU core, and a run that fits a budget of time.

Counted are products: 2 × (parameters of the blocks) for every token that a row reads or writes, 2 × V·d for
every token whose distribution is wanted; rows are (prompt, condition). Blocks below the first changed one,
which read a prompt once for all conditions, are counted as if they did not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.weight_steering.spec import WeightSteering

__all__ = ["BUDGET", "Work", "seconds", "sized"]

BUDGET = 300.0
"""Seconds that the default run is made to fit, as far as its smallest size does."""
RATE = 4e10
"""Floating-point operations a second that a run reaches on one CPU core, everything counted."""
NODES, READ = 20, 17
"""Tokens behind a prompt that its continuations take, and distributions that are read of them."""

FEWER_ALPHAS = (-1.0, 0.5, 1.0, 2.0)
FEWER_PROMPTS = (40, 24)
"""Or more, where that leaves too few units to say anything."""
FEWER_ANSWERS, SHORTER = 12, 24
LEAST_ALPHAS, SHORTEST = (-1.0, 1.0, 2.0), 12


@dataclass(frozen=True)
class Work:
    """What a run is of.

    Attributes:
        parameters: of the model, embedding included. unembedding: V·d. tokens: mean of a prompt.
        prompts: (role, split) -> prompts, roles "wanted" and "neutral". same: whether both roles are the same
            prompts. fewest: prompts of each split below which no mean could be judged (`chosen.fewest`).
    """

    parameters: int
    unembedding: int
    tokens: float
    prompts: Mapping[tuple[str, str], int]
    same: bool
    fewest: int = 0


def seconds(spec: WeightSteering, work: Work) -> float:
    """About how long a run takes."""
    series = len(spec.series())
    conditions = 2 + series * len(spec.alphas) + series  # unsteered, twice; at equal KL
    count = {key: min(n, spec.prompts or n) for key, n in work.prompts.items()}
    wanted, neutral = (
        sum(n for (role, _), n in count.items() if role == own) for own in ("wanted", "neutral")
    )
    answered = min(spec.answers, count.get(("wanted", "validation"), 0))
    prompts = wanted if work.same else wanted + neutral
    written = answered * spec.max_new_tokens
    blocks = max(work.parameters - work.unembedding, 0) * (prompts * work.tokens + wanted * NODES + written)
    head = work.unembedding * (neutral * work.tokens + wanted * READ + written)
    return 2.0 * conditions * (blocks + head) / RATE


def sized(spec: WeightSteering, work: Work, budget: float = BUDGET) -> WeightSteering:
    """The first of these that fits the budget: the run as it is, with four α, with fewer and shorter answers,
    with fewer and fewer prompts of each split, with least of everything; the last where none does."""
    found = spec
    for found in _smaller(spec, work.fewest):
        if seconds(found, work) <= budget:
            break
    return found


def _smaller(spec: WeightSteering, least: int) -> Iterator[WeightSteering]:
    def cut(alphas: tuple[float, ...], answers: int, tokens: int, prompts: int | None) -> WeightSteering:
        fewer = {"answers": min(spec.answers, answers), "max_new_tokens": min(spec.max_new_tokens, tokens)}
        return spec.model_copy(update={"alphas": alphas, "prompts": prompts, **fewer})

    yield spec
    yield cut(FEWER_ALPHAS, spec.answers, spec.max_new_tokens, None)
    few, fewest = (max(most, least) for most in FEWER_PROMPTS)
    for most in (None, few, fewest):
        yield cut(FEWER_ALPHAS, FEWER_ANSWERS, SHORTER, most)
    yield cut(LEAST_ALPHAS, FEWER_ANSWERS, SHORTEST, fewest)
