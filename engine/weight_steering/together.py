"""Every figure of weight steering from one reading of each prompt, under all amplitudes at once.

Rows are (prompt, condition). One pass reads a prompt with the continuations that are scored behind it
(`engine.passes.branches`): it gives the next token's distribution, the likelihood of the prompt's own text
and of the continuations, and the keys and values that answers go on from. Blocks below the first changed one
read each prompt once for all conditions. The unsteered model is the first row of every prompt, in the same
batch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engine.errors import PatchError
from engine.models.loading import LoadedModel
from engine.models.memory import in_halves
from engine.passes.batching import batches
from engine.passes.branches import Tree, branches_fit, laid_out, tree_of
from engine.passes.continuations import Reader, follow_all
from engine.passes.decoding import Decoder, Rows, check_stop, decode_tokens
from engine.passes.generate import Generated, keep, steps, stop_tokens
from engine.weights.steer_rows import Condition, RowShifts

__all__ = ["Asked", "Found", "together"]

BYTES = 1 << 29
"""Of keys and values at once."""
FEWEST = 1024
"""Tokens in the cache at once at least; at most what other passes take, so that a cancel is soon heard."""
NUMBERS = 1 << 26
"""Log-probabilities held at once, 256 MB in float32."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """What is asked of each prompt.

    Attributes:
        ids: as the model reads it. text: (n,) whether KL and the likelihood of its own text are wanted.
        continuations: those to be scored. answered: (n,) whether an answer is generated.
        unknown: a token that is none of a text, see `effects`. most: tokens of an answer.
    """

    ids: Sequence[Sequence[int]]
    text: Bool[np.ndarray, " n"]
    continuations: Sequence[Sequence[Sequence[int]]]
    answered: Bool[np.ndarray, " n"]
    unknown: int | None = None
    most: int = 1


@dataclass(frozen=True)
class Found:
    """Numbers per condition, the unsteered model first, and prompt.

    Attributes:
        kl: KL(steered ‖ unsteered) of the token after the prompt, nats. nll: −Σ log p of its own tokens from
            the second one on; both (c, n), NaN where not asked.
        log_probs: [condition][prompt][continuation] -> (tokens,). answers: tokens per condition and prompt.
    """

    kl: Float[np.ndarray, "c n"]
    nll: Float[np.ndarray, "c n"]
    log_probs: list[list[list[np.ndarray]]]
    answers: Generated

    @classmethod
    def empty(cls, conditions: int, asked: Asked) -> Found:
        """Nothing yet."""
        n = len(asked.ids)
        none = np.full((2, conditions, n), np.nan)
        log_probs = [[[np.empty(0)] * len(own) for own in asked.continuations] for _ in range(conditions)]
        answers = Generated(
            [[[] for _ in range(n)] for _ in range(conditions)], [[False] * n for _ in range(conditions)]
        )
        return cls(none[0], none[1], log_probs, answers)


class _NoRoom(PatchError, MemoryError):
    """One prompt does not fit under so many conditions."""


def together(
    lm: LoadedModel,
    conditions: Sequence[Condition],
    asked: Asked,
    *,
    batch_tokens: int | None = None,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Found:
    """Runs every prompt unsteered and under every condition.

    Args:
        conditions: of shifts that fit rows (`by_rows`).
        batch_tokens: tokens in the cache at once; by default what fits `BYTES`.
        on_progress: called between batches with (done, total) pairs of prompt and condition.

    Raises:
        PatchError: as `Decoder`; or not even one steered prompt fits into memory. JobCancelled: `should_stop`
            said so.
    """
    found = Found.empty(1 + len(conditions), asked)
    fit = branches_fit(lm)
    jobs = [_Job(lm, asked, np.flatnonzero(asked.answered == answers), fit) for answers in (True, False)]
    jobs = [job for job in jobs if len(job.prompts)]
    limit = batch_tokens or _limit(lm)
    longest = max((max(job.sizes) for job in jobs), default=1)
    most = max(1, limit // longest - 1)
    todo, total, done = list(range(1, 1 + len(conditions))), len(asked.ids) * max(1, len(conditions)), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(min(done, total), total)

    def run(numbers: list[int]) -> None:
        shifts = RowShifts(lm, [(None, 0.0), *(conditions[n - 1] for n in numbers)])
        for job in jobs:
            plan = job.plan(limit // (1 + len(numbers)))
            part = _Part(job, shifts, [0, *numbers], found, should_stop)
            for batch in in_halves(plan, part.run, _no_room):
                tell(len(batch) * len(numbers) or len(batch))

    if not todo:
        run([])
    for _ in in_halves([todo[i : i + most] for i in range(0, len(todo), most)], run, _refuse):
        continue
    return found


def _limit(lm: LoadedModel) -> int:
    """Tokens in the cache at once."""
    taps = lm.taps
    size = next(lm.model.parameters()).element_size()
    numbers = sum(layer.n_kv_heads * layer.head_dim for layer in taps.layers)
    return int(np.clip(BYTES // max(1, 2 * numbers * size), FEWEST, decode_tokens(lm.device)))


def _no_room(prompt: int, error: Exception) -> PatchError:
    return _NoRoom("A prompt does not fit into memory.", given=f"prompt {prompt} ({error})")


def _refuse(_condition: int, error: Exception) -> PatchError:
    return PatchError(
        "One steered prompt does not fit into the device's memory.",
        given=str(error),
        next_step="use a smaller dtype, another device, or leave out the longest prompts.",
    )


class _Job:
    """Prompts of which the same is asked: answers, or none.

    Attributes:
        prompts: (m,) numbers among those asked of. sizes: tokens in the cache that each takes.
    """

    def __init__(self, lm: LoadedModel, asked: Asked, prompts: np.ndarray, fit: bool) -> None:
        self.lm, self.asked, self.fit, self.prompts = lm, asked, fit, prompts.tolist()
        self.answers = bool(len(prompts)) and bool(asked.answered[prompts[0]])
        self.ids = [list(asked.ids[p]) for p in self.prompts]
        self.continuations = [asked.continuations[p] for p in self.prompts]
        self.trees: list[Tree] = [tree_of(own) for own in self.continuations]
        longest = max((len(c) for own in self.continuations for c in own), default=1)
        self.room = max(longest, asked.most if self.answers else 1) - 1
        self.sizes = [self._size(*pair) for pair in zip(self.ids, self.trees, strict=True)]

    def _size(self, ids: Sequence[int], tree: Tree) -> int:
        longer = sum(len(ends) > 1 for ends in tree.ends)
        more = len(tree.tokens) if self.fit else longer * (len(ids) + self.room)
        return len(ids) + max(more, self.room) + 1

    def plan(self, limit: int) -> list[list[int]]:
        """Batches of indices into `prompts`."""
        order = sorted(range(len(self.ids)), key=lambda i: -len(self.ids[i]))
        sides = batches(
            [len(self.ids[i]) + self.room + 1 for i in order], 1 << 62, self.lm.taps.rotary_switch
        )
        found = []
        for side in sides:
            own = [order[i] for i in side]
            parts = batches([self.sizes[i] for i in own], max(1, limit))
            found += [[own[i] for i in part] for part in parts]
        return found


@dataclass(frozen=True)
class _Part:
    """Some conditions on the prompts of a job.

    Attributes:
        numbers: of the shifts' conditions in what is found.
    """

    job: _Job
    shifts: RowShifts
    numbers: list[int]
    found: Found
    should_stop: Callable[[], bool] | None

    def run(self, batch: list[int]) -> None:
        """All that is asked of a batch of prompts."""
        check_stop(self.should_stop)
        job = self.job
        decoder = Decoder(job.lm, [job.ids[i] for i in batch], self.shifts, job.room)
        trees = laid_out([job.trees[i] for i in batch], job.lm.device) if job.fit else None
        rows, hidden = decoder.begin(range(len(batch)), trees)
        end = hidden.shape[1] - (0 if trees is None else trees.ids.shape[1])
        last = decoder.logits(hidden[:, end - 1], rows.conditions)
        self._next_token(batch, last)
        self._texts(decoder, batch, hidden, end)
        del hidden
        if not job.fit:
            self._forked(decoder, batch, rows, last)
        if job.answers:
            self._answers(decoder, batch, rows, last)

    def _next_token(self, batch: list[int], last: Tensor) -> None:
        """KL to the unsteered row, and continuations' first tokens."""
        count = len(self.numbers)
        for place, i in enumerate(batch):
            own = last[place * count : (place + 1) * count].float().log_softmax(-1)
            prompt = self.job.prompts[i]
            if self.job.asked.text[prompt]:
                kl = (own.exp() * (own - own[:1])).sum(-1)
                self.found.kl[self.numbers, prompt] = kl.double().cpu().numpy()
            first = [ids[0] for ids in self.job.continuations[i]]
            values = own[:, first].double().cpu().numpy()
            for number, row in zip(self.numbers, values, strict=True):
                for k, value in enumerate(row):
                    self.found.log_probs[number][prompt][k] = np.array([value])

    def _texts(self, decoder: Decoder, batch: list[int], hidden: Tensor, end: int) -> None:
        """Likelihood of prompts' own tokens, and of continuations from their second token on."""
        job, count = self.job, len(self.numbers)
        places: list[tuple[int, int]] = []
        pairs: list[tuple[int, int]] = []
        owners: list[tuple[int, int]] = []
        for place, i in enumerate(batch):
            wanted = _wanted(job, i, end)
            known: dict[int, int] = {}
            for position, token, owner in wanted:
                if position not in known:
                    known[position] = len(places)
                    places.append((place, position))
                pairs.append((known[position], token))
                owners.append((job.prompts[i], owner))
        states = hidden.unflatten(0, (len(batch), count))
        values = _log_probs(decoder, states, *(torch.tensor(each).reshape(-1, 2) for each in (places, pairs)))
        sums = {p: np.zeros(count) for i in batch if job.asked.text[p := job.prompts[i]]}
        for (prompt, owner), value in zip(owners, values.T, strict=True):
            if owner < 0:
                sums[prompt] -= value
                continue
            for number, one in zip(self.numbers, value, strict=True):
                own = self.found.log_probs[number][prompt]
                own[owner] = np.append(own[owner], one)
        for prompt, total in sums.items():
            self.found.nll[self.numbers, prompt] = total

    def _forked(self, decoder: Decoder, batch: list[int], rows: Rows, last: Tensor) -> None:
        """Continuations, each behind a copy of its prompt's keys and values."""
        spare = dataclasses.replace(rows, cache=copy.deepcopy(rows.cache))
        continuations = [self.job.continuations[i] for i in batch]
        for (c, p, k), values in follow_all(decoder, Reader(decoder), spare, last, continuations).items():
            self.found.log_probs[self.numbers[c]][self.job.prompts[batch[p]]][k] = values[0]

    def _answers(self, decoder: Decoder, batch: list[int], rows: Rows, last: Tensor) -> None:
        lm, made = self.job.lm, self.found.answers
        prompts = [self.job.prompts[i] for i in batch]
        for number in self.numbers:
            for prompt in prompts:
                made.tokens[number][prompt], made.ended[number][prompt] = [], False
        ends = torch.tensor(sorted(stop_tokens(lm)), device=lm.device)
        for names, chosen, over, _ in steps(decoder, rows, last, ends, self.job.asked.most, self.should_stop):
            own = [(self.numbers[condition], prompts[place]) for condition, place in names]
            keep(own, chosen, over, made.tokens, made.ended)


def _wanted(job: _Job, i: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(position that predicts it, token, which continuation's or −1 for the prompt's own)."""
    ids, start = job.ids[i], end - len(job.ids[i])
    if job.asked.text[job.prompts[i]]:
        for place, token in enumerate(ids[1:], start):
            if token != job.asked.unknown:
                yield place, token, -1
    for k, ends in enumerate(job.trees[i].ends if job.fit else ()):
        for node, token in zip(ends[1:], job.continuations[i][k][1:], strict=True):
            yield end + node, token, k


def _log_probs(decoder: Decoder, states: Tensor, places: Tensor, pairs: Tensor) -> Float[np.ndarray, "c q"]:
    """Log-probability of tokens at some places under every condition.

    Args:
        states: (prompts, conditions, tokens, d). places: (p, 2) of prompt and position. pairs: (q, 2) of
            place and token, in any order.
    """
    count, device = states.shape[1], states.device
    found = np.empty((count, len(pairs)))
    size = max(1, NUMBERS // (decoder.lm.taps.vocab * count))
    for start in range(0, len(places), size):
        where = places[start : start + size].to(device)
        own = states[where[:, 0], :, where[:, 1]]
        conditions = torch.arange(count, device=device).repeat(len(own))
        logits = decoder.logits(own.flatten(0, 1), conditions)
        log_probs = logits.float().log_softmax(-1).unflatten(0, (len(own), count))
        here = torch.nonzero((pairs[:, 0] >= start) & (pairs[:, 0] < start + size))[:, 0]
        place, token = pairs[here].to(log_probs.device).T
        found[:, here.numpy()] = log_probs[place - start, :, token].T.double().cpu().numpy()
    return found
