"""Log-probabilities of given continuations, teacher-forced, under edits.

Each prompt runs once per condition; its cache is shared by all of its continuations. A continuation is tokens
appended to the prompt's own, so nothing of the prompt is ever tokenised again.

How a text becomes tokens is the same for every model: `spelled` gives the tokenizer the text alone,
without special tokens and without a chat template. A leading space is kept, and is needed where the prompt
ends without white space ("Answer:" + " Yes"); after a chat template's assistant header there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import PatchError
from engine.models.loading import LoadedModel
from engine.passes.decoding import Decoder, Rows, in_batches
from engine.passes.edits import Edit

__all__ = ["Reader", "Scored", "follow_all", "score", "shared_ids", "spelled", "surface_forms"]

Ragged = list[list[list[np.ndarray]]]
"""[condition][prompt][continuation] -> one number per token, float64 (tokens,)."""


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of continuations.

    Attributes:
        log_probs: natural log-probability of every token given the prompt and the tokens before it.
        log_mass: log of the probability that the model gives, at the same places, to the tokens that were
            named as shared; None when none were named.
    """

    log_probs: Ragged
    log_mass: Ragged | None


def spelled(tokenizer: Any, text: str) -> list[int] | None:
    """A text's tokens, the text alone, without special tokens; None where the vocabulary can't spell it.

    That is: no token at all, the unknown token among them, or a visible character that no token covers.
    """
    fast = bool(getattr(tokenizer, "is_fast", False))  # others give no places of their tokens
    where: dict[str, Any] = {"return_offsets_mapping": True} if fast else {}
    made = tokenizer(text, add_special_tokens=False, **where)
    ids = [int(token) for token in made["input_ids"]]
    if not ids or getattr(tokenizer, "unk_token_id", None) in ids:
        return None
    if not fast:
        return ids
    covered = {place for start, end in made["offset_mapping"] for place in range(start, end)}
    seen = {place for place, char in enumerate(text) if char.isprintable() and not char.isspace()}
    return None if seen - covered else ids


def surface_forms(tokenizer: Any, forms: Sequence[str]) -> list[list[int]]:
    """Token sequences of a word's forms that exclude one another, so that their probabilities add up.

    Forms that this tokenizer writes alike count once, and a form that begins with another one is part of it.
    Those that it can't spell are left out: the model gives them no probability of their own.
    """
    made = (spelled(tokenizer, form) for form in forms)
    found = sorted({tuple(ids) for ids in made if ids is not None}, key=lambda ids: (len(ids), ids))
    kept: list[tuple[int, ...]] = []
    for ids in found:
        if not any(ids[: len(short)] == short for short in kept):
            kept.append(ids)
    return [list(ids) for ids in kept]


def shared_ids(tokenizer: Any, other: Any) -> list[int]:
    """Ids, in the first tokenizer, of the tokens whose string is in both; ids are never compared."""
    strings = other.get_vocab().keys()
    return sorted(int(token) for string, token in tokenizer.get_vocab().items() if string in strings)


def score(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    edits: Sequence[Edit | None] = (None,),
    *,
    shared: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Scored:
    """Scores every continuation of every prompt under every condition.

    Args:
        token_ids: per prompt, as the model reads it. No padding.
        continuations: per prompt, any number of token sequences, none of them empty.
        edits: one condition each; None is the model as it is.
        shared: token ids whose total probability is wanted beside every token's.
        batch_tokens: tokens in the cache at once.
        on_progress: called between batches with (done, total) prompts.
        should_stop: asked between batches.

    Raises:
        PatchError, SiteError: as `Decoder`; or continuations that are empty or not one list per prompt.
        JobCancelled: `should_stop` said so.
    """
    if len(continuations) != len(token_ids) or not all(len(c) for own in continuations for c in own):
        raise PatchError(
            "The continuations do not fit the prompts.",
            expected=f"{len(token_ids)} lists of token sequences that are not empty",
            given=f"{len(continuations)} lists",
        )
    longest = max((len(ids) for own in continuations for ids in own), default=1)
    decoder = Decoder(lm, token_ids, edits, longest - 1)
    reader = Reader(decoder, None if shared is None else torch.tensor(sorted(shared), device=lm.device))
    log_probs: Ragged = [[[np.empty(0)] * len(own) for own in continuations] for _ in edits]
    mass: Ragged = [[[np.empty(0)] * len(own) for own in continuations] for _ in edits]

    def run(batch: list[int]) -> None:
        rows, logits = decoder.start(batch)
        for place, (log_p, log_m) in follow_all(decoder, reader, rows, logits, continuations).items():
            condition, prompt, number = place
            log_probs[condition][prompt][number], mass[condition][prompt][number] = log_p, log_m

    copies = max(1, *map(len, continuations))
    in_batches(decoder.plan(batch_tokens, copies), run, on_progress, should_stop)
    return Scored(log_probs, None if shared is None else mass)


@dataclass(frozen=True)
class Reader:
    """Turns logits into log-probabilities of wanted tokens, and of all shared ones together."""

    decoder: Decoder
    shared: Tensor | None = None

    def __call__(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """(N, V), (N,) -> (2, N) float64 on the CPU; the second row is 0 where no shared tokens are named."""
        log_probs = logits.float().log_softmax(-1)
        chosen = log_probs.gather(-1, wanted.to(logits.device)[:, None])[:, 0]
        mass = torch.zeros_like(chosen)
        if self.shared is not None:
            mass = log_probs[:, self.shared.to(logits.device)].logsumexp(-1)
        return torch.stack([chosen, mass]).cpu().double()  # not every device has float64

    def of_states(self, hidden: Tensor, wanted: Tensor, conditions: Tensor, chunk: int = 512) -> Tensor:
        """(N, d), (N,), (N,) -> (2, N), some hundred rows of the vocabulary at a time."""
        parts = zip(*(each.split(chunk) for each in (hidden, wanted, conditions)), strict=True)
        return torch.cat([self(self.decoder.logits(h, c), w) for h, w, c in parts], dim=1)


def follow_all(
    decoder: Decoder,
    reader: Reader,
    rows: Rows,
    logits: Tensor,
    continuations: Sequence[Sequence[Sequence[int]]],
) -> dict[tuple[int, int, int], np.ndarray]:
    """(condition, prompt, continuation) -> (2, tokens), for the rows of one batch."""
    owners = list(zip(rows.conditions.tolist(), rows.prompts.tolist(), strict=True))
    places = [(row, c, p, k) for row, (c, p) in enumerate(owners) for k in range(len(continuations[p]))]
    if not places:
        return {}
    device = rows.prompts.device
    texts = [continuations[p][k] for _, _, p, k in places]
    source = torch.tensor([row for row, *_ in places], device=device)
    with torch.inference_mode():
        first = torch.cat(
            [
                reader(logits[part], torch.tensor([texts[int(i)][0] for i in where], device=device))
                for part, where in zip(source.split(512), torch.arange(len(places)).split(512), strict=True)
            ],
            dim=1,
        )
        found = [[first[:, i]] for i in range(len(places))]
        longer = [i for i, text in enumerate(texts) if len(text) > 1]
        if longer:
            rows.select(source[longer])
            width = max(len(texts[i]) for i in longer) - 1
            fed = [[*texts[i][:-1], *[0] * (width + 1 - len(texts[i]))] for i in longer]
            hidden = decoder.follow(rows, torch.tensor(fed, device=device))
            keep = [(n, t) for n, i in enumerate(longer) for t in range(len(texts[i]) - 1)]
            at = torch.tensor(keep, device=hidden.device).T
            wanted = torch.tensor([texts[longer[n]][t + 1] for n, t in keep], device=device)
            values = reader.of_states(hidden[at[0], at[1]], wanted, rows.conditions[at[0].to(device)])
            for (n, _), value in zip(keep, values.T, strict=True):
                found[longer[n]].append(value)
    return {
        (c, p, k): torch.stack(values, dim=1).numpy()
        for (_, c, p, k), values in zip(places, found, strict=True)
    }
