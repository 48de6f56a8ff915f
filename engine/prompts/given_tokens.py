"""Prompts that are given as token ids: used as they are, with the characters that each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import PromptsError
from engine.prompts.rendering import Rendered, Span

__all__ = ["read_tokens"]


def read_tokens(prompt: dict[str, Any], tokenizer: Any) -> Rendered:
    """A prompt of given token ids (keys id, text, token_ids); its text is what they decode to.

    The user's own text is the last place of `text` in it. Where `text` is empty, it is all but the special
    tokens at both ends.

    Raises:
        PromptsError: ids beyond the vocabulary, or a text that the ids don't say.
    """
    ids, name = list(prompt["token_ids"]), prompt["id"]
    beyond = [token for token in ids if token >= len(tokenizer)]
    if beyond:
        raise PromptsError(
            f"Prompt {name!r} has a token id that the tokenizer doesn't have.",
            expected=f"0 to {len(tokenizer) - 1}",
            given=beyond[0],
            next_step="make the ids with this model's tokenizer.",
        )
    text = _decoded(ids, tokenizer)
    offsets = _offsets(ids, text, tokenizer)
    own = prompt["text"].strip()
    if not own:
        special = set(tokenizer.all_special_ids)
        inside = [place for place, token in enumerate(ids) if token not in special]
        if not inside:
            raise PromptsError(
                f"Prompt {name!r} has token ids of special tokens alone.",
                expected="at least one token of text",
                given=repr(text[:80]),
                next_step="correct its token ids, or leave it out.",
            )
        return Rendered(text, offsets[inside[0]][0], offsets[inside[-1]][1], False, tokens=(ids, offsets))
    start = text.rfind(own)
    if start < 0:
        raise PromptsError(
            f"Prompt {name!r} has a text and token ids that say something else.",
            expected=f"ids whose text holds {own[:80]!r}",
            given=repr(text[:200]),
            next_step="correct one of them, or leave the text out.",
        )
    return Rendered(text, start, start + len(own), False, tokens=(ids, offsets))


def _decoded(ids: Sequence[int], tokenizer: Any) -> str:
    found: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return found


def _offsets(ids: Sequence[int], text: str, tokenizer: Any) -> list[Span]:
    """[start, end) of every token in the text: the tokenizer's own where it makes the same tokens of it.

    Otherwise a token ends where what is decoded up to it stops agreeing with the text; tokens that make one
    character together all stand for it.
    """
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if list(again["input_ids"]) == list(ids):
        return [(start, end) for start, end in again["offset_mapping"]]
    ends = [_agreeing(_decoded(ids[: n + 1], tokenizer), text) for n in range(len(ids))]
    ends[-1] = len(text)
    spans, start = [], 0
    for place, end in enumerate(ends):
        later = (other for other in ends[place:] if other > start)
        spans.append((start, next(later, len(text))))
        start = max(start, end)
    return spans


def _agreeing(a: str, b: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(a), len(b)))
