"""Greedy generation under edits: many prompts and conditions at once, own loop, one shared cache.

    edit = replace_at(Site("resid_post", 4), positions, vectors)
    made = generate(lm, token_ids, [None, edit], max_new_tokens=60)
    made.texts(lm.tokenizer)[1][7]  # prompt 7 under the edit

In float32 the tokens are those of Hugging Face's `generate(do_sample=False)` with the same hooks, except
where two tokens tie within rounding; in 16-bit dtypes one batch shape differs from another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.errors import PatchError
from engine.models.loading import LoadedModel
from engine.passes.decoding import Decoder, Rows, check_stop, in_batches
from engine.passes.edits import Edit, Tokens, replace_at

__all__ = ["Edit", "Generated", "Tokens", "generate", "keep", "replace_at", "steps", "stop_tokens"]


@dataclass(frozen=True)
class Generated:
    """What was generated.

    Attributes:
        tokens: tokens[condition][prompt], without the token that ended it.
        ended: ended[condition][prompt], whether a stop token came within the limit.
        top: top[condition][prompt][step], the likeliest tokens with their probabilities, the chosen one
            first; one step more than tokens where a stop token came. Empty unless asked for.
    """

    tokens: list[list[list[int]]]
    ended: list[list[bool]]
    top: list[list[list[list[tuple[int, float]]]]] = field(default_factory=list)

    def texts(self, tokenizer: Any) -> list[list[str]]:
        """texts[condition][prompt], special tokens left out."""
        return [
            [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in condition]
            for condition in self.tokens
        ]


def stop_tokens(lm: LoadedModel) -> frozenset[int]:
    """Tokens that end an answer: those of the generation config and of the config, and the tokenizer's."""
    found: set[int] = set()
    config = lm.model.config
    for holder in (getattr(lm.model, "generation_config", None), config.get_text_config(), lm.tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def generate(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    edits: Sequence[Edit | None] = (None,),
    *,
    max_new_tokens: int,
    top: int = 0,
    stop: Collection[int] | None = None,
    batch_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Generated:
    """The most likely continuation of every prompt under every condition, token by token.

    Args:
        token_ids: per prompt, as the model reads it. No padding.
        edits: one condition each; None is the model as it is.
        top: how many of the likeliest tokens are kept at every step.
        stop: tokens that end a row; None takes `stop_tokens(lm)`.
        batch_tokens: tokens in the cache at once.
        on_progress: called between batches with (done, total) prompts.
        should_stop: asked before every token.

    Raises:
        PatchError, SiteError: as `Decoder`; or no tokens were asked for. JobCancelled: `should_stop` said so.
    """
    if max_new_tokens < 1:
        raise PatchError("Nothing is to be generated.", expected="1 token or more", given=max_new_tokens)
    decoder = Decoder(lm, token_ids, edits, max_new_tokens - 1)
    ends = torch.tensor(sorted(stop_tokens(lm) if stop is None else stop), device=lm.device)
    tokens = [[[] for _ in token_ids] for _ in edits]  # type: list[list[list[int]]]
    ended = [[False] * len(token_ids) for _ in edits]
    likeliest = [[[] for _ in token_ids] for _ in edits]  # type: list[list[list[list[tuple[int, float]]]]]

    def run(batch: list[int]) -> None:
        rows, logits = decoder.start(batch)
        for prompt in batch:
            for condition in range(len(edits)):
                tokens[condition][prompt], likeliest[condition][prompt] = [], []
        written = steps(decoder, rows, logits, ends, max_new_tokens, should_stop)
        for names, chosen, over, predicted in written:
            for (condition, prompt), best in zip(names, _likeliest(predicted, chosen, top), strict=False):
                likeliest[condition][prompt].append(best)
            keep(names, chosen, over, tokens, ended)

    in_batches(decoder.plan(batch_tokens), run, on_progress, should_stop)
    return Generated(tokens, ended, likeliest if top else [])


Names = list[tuple[int, int]]


def steps(
    decoder: Decoder,
    rows: Rows,
    logits: Tensor,
    ends: Tensor,
    limit: int,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Names, Tensor, Tensor, Tensor]]:
    """Writes the likeliest token of every row, at most `limit` of them; rows that ended are dropped.

    Args:
        rows, logits: as `Decoder.start` gives them, or some of them. ends: (E,) tokens that end a row.

    Yields:
        at each step (condition, prompt) of the rows, the tokens chosen (B,), whether they end a row (B,), and
        the logits (B, V).
    """
    for step in range(limit):
        check_stop(should_stop)
        chosen = logits.argmax(-1).to(rows.prompts.device)
        over = torch.isin(chosen, ends)
        yield list(zip(rows.conditions.tolist(), rows.prompts.tolist(), strict=True)), chosen, over, logits
        going = torch.nonzero(~over)[:, 0]
        if not len(going) or step == limit - 1:
            return
        if len(going) < len(over):
            rows.select(going)
        logits = decoder.logits(decoder.follow(rows, chosen[going, None])[:, -1], rows.conditions)


def keep(
    names: Names, chosen: Tensor, over: Tensor, tokens: list[list[list[int]]], ended: list[list[bool]]
) -> None:
    """Puts a step's tokens where they belong, tokens[condition][prompt] and ended[condition][prompt]."""
    for (condition, prompt), token, last in zip(names, chosen.tolist(), over.tolist(), strict=True):
        if last:
            ended[condition][prompt] = True
        else:
            tokens[condition][prompt].append(token)


def _likeliest(logits: Tensor, chosen: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each row (B, V) with their probabilities, the chosen one first of equals."""
    if not count:
        return []
    found = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    first = (found.indices.to(chosen.device) != chosen[:, None]).long().argsort(dim=1, stable=True)
    ids, values = (part.to(chosen.device).gather(1, first).tolist() for part in (found.indices, found.values))
    return [list(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]
