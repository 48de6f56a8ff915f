"""Prompts become tokens once: rendered text, token ids, every token's characters, and a prompt's parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.errors import PromptsError
from engine.prompts.given_tokens import read_tokens
from engine.prompts.rendering import Rendered, Span, is_plain, render
from engine.prompts.spec import PromptsSpec

__all__ = ["encode", "eos_note"]

ENCODED: dict[str, Any] = {
    "id": pl.String,
    "rendered": pl.String,
    "token_ids": pl.List(pl.Int32),
    "offsets": pl.List(pl.List(pl.Int32)),
    "content_start": pl.Int32,
    "content_end": pl.Int32,
}


UNUSABLE = Rendered("", 0, 0, False, tokens=((), ()))
"""In the place of a prompt that can't be rendered: it has no token."""
PARTS: dict[str, Any] = {"answer_start": pl.Int32, "answer_end": pl.Int32}
HEADER: dict[str, Any] = {"assistant_start": pl.Int32, "assistant_end": pl.Int32}


def encode(
    table: pl.DataFrame, tokenizer: Any, spec: PromptsSpec, max_length: int, *, header: bool = False
) -> pl.DataFrame:
    """Renders and tokenises every prompt for one model.

    Args:
        table: from `read_prompts`.
        tokenizer: a fast Hugging Face tokenizer.
        spec: template and its arguments, system message, date, and what the assistant has said.
        max_length: the model's context in tokens.
        header: whether to find what opens the assistant's turn.

    Returns:
        Row-aligned table with the columns of `ENCODED`: the rendered text, token ids, each token's
        [start, end) characters in the rendered text, and the characters of the user's own text (without
        white space around it). Where a prompt holds an answer, its characters too (`PARTS`, null for none),
        and with `header` those of what opens the assistant's turn (`HEADER`). BOS is there once where the
        tokenizer or template adds it, never twice; EOS that the tokenizer appends with `keep_eos` only.
        A prompt that can't be used, where these are dropped, has no token.

    Raises:
        PromptsError: no chat template, slow tokenizer, a template that refuses the messages, asks for
            a date that the study doesn't give or can't be continued, token ids that the tokenizer doesn't
            have or that say another text, or (unless they are dropped) a prompt longer than the context.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PromptsError(
            "The tokenizer gives no character offsets.",
            expected="a fast tokenizer (tokenizer.json)",
            given=type(tokenizer).__name__,
            next_step="name a fast tokenizer of the same vocabulary as 'tokenizer' in the study.",
        )
    wanted = {"id", "text", "messages", "message_fields", spec.answer_column, *spec.roles}
    prompts = list(table.select(name for name in table.columns if name in wanted).iter_rows(named=True))
    rendered = _rendered(prompts, tokenizer, spec, header)
    ids, offsets = _tokenise(rendered, tokenizer, spec.keep_eos)
    counts = np.array([len(found) for found in ids], dtype=np.int64)
    if spec.too_long == "refuse":
        _check_lengths(prompts, counts, max_length)
    texts = {
        "id": table["id"],
        "rendered": [one.text for one in rendered],
        "content_start": [one.start for one in rendered],
        "content_end": [one.end for one in rendered],
    }
    columns = ENCODED
    if any(one.answer for one in rendered):
        texts |= _spans("answer", [one.answer for one in rendered])
        columns = columns | PARTS
    if header:
        texts |= _spans("assistant", [one.header for one in rendered])
        columns = columns | HEADER
    whole = pl.DataFrame(texts).hstack(_nested(ids, offsets, counts))
    return whole.select(pl.col(name).cast(dtype) for name, dtype in columns.items())


def _rendered(
    prompts: Sequence[dict[str, Any]], tokenizer: Any, spec: PromptsSpec, header: bool
) -> list[Rendered]:
    """Every prompt rendered; the first fault, unless faults are dropped and some prompts have none."""
    known: dict[str, str] = {}
    found: list[Rendered] = []
    faults: list[PromptsError] = []
    for prompt in prompts:
        try:
            if prompt.get("token_ids") is not None:
                found.append(read_tokens(prompt, tokenizer))
            else:
                found.append(render(prompt, tokenizer, spec, known, header=header))
        except PromptsError as fault:
            found.append(UNUSABLE)
            faults.append(fault)
        if faults and (spec.unusable == "refuse" or len(faults) == len(prompts)):
            raise faults[0]
    return found


def _check_lengths(prompts: Sequence[dict[str, Any]], counts: np.ndarray[Any, Any], most: int) -> None:
    if counts.max(initial=0) <= most:
        return
    longest = int(np.argmax(counts > most))
    raise PromptsError(
        f"Prompt {prompts[longest]['id']!r} is longer than the model's context.",
        expected=f"at most {most} tokens",
        given=int(counts[longest]),
        next_step='shorten it, leave it out, or set too_long = "drop" under [prompts].',
    )


def _spans(part: str, spans: Sequence[Span | None]) -> dict[str, Any]:
    return {
        f"{part}_start": [None if span is None else span[0] for span in spans],
        f"{part}_end": [None if span is None else span[1] for span in spans],
    }


def _nested(ids: list[list[int]], offsets: list[Any], counts: np.ndarray[Any, Any]) -> pl.DataFrame:
    """token_ids and offsets as columns of lists, made flat: lists of lists of lists take polars long."""
    spans = np.array(list(itertools.chain.from_iterable(offsets)), dtype=np.int32).reshape(-1, 2)
    flat = pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(counts)), counts),
            "token_ids": np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(counts.sum())),
            "offsets": pl.Series(spans, dtype=pl.Array(pl.Int32, 2)).cast(pl.List(pl.Int32)),
        }
    )
    lists = flat.group_by("row", maintain_order=True).agg("token_ids", "offsets")
    every = pl.DataFrame({"row": np.arange(len(counts))})
    joined = every.join(lists, on="row", how="left", maintain_order="left")
    return joined.select(pl.col("token_ids", "offsets").fill_null([]))


def _tokenise(
    rendered: Sequence[Rendered], tokenizer: Any, keep_eos: bool
) -> tuple[list[list[int]], list[Any]]:
    """Token ids and offsets of every prompt: BOS at most once, and EOS that the tokenizer appends or not."""
    ids: list[list[int]] = [[] for _ in rendered]
    offsets: list[Any] = [[] for _ in rendered]
    for row, one in enumerate(rendered):
        if one.tokens is not None:
            ids[row], offsets[row] = list(one.tokens[0]), list(one.tokens[1])
    made = [row for row, one in enumerate(rendered) if one.tokens is None]
    for add_special in {rendered[row].add_special for row in made}:
        rows = [row for row in made if rendered[row].add_special == add_special]
        found = tokenizer(
            [rendered[row].text for row in rows],
            add_special_tokens=add_special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        parts = zip(rows, found["input_ids"], found["offset_mapping"], strict=True)
        for row, own, spans in parts:
            ids[row], offsets[row] = _trimmed(list(own), list(spans), tokenizer, add_special and not keep_eos)
    return ids, offsets


def _trimmed(
    token_ids: list[int], offsets: list[Any], tokenizer: Any, drop_eos: bool
) -> tuple[list[int], list[Any]]:
    bos = tokenizer.bos_token_id
    while len(token_ids) > 1 and bos is not None and token_ids[0] == token_ids[1] == bos:
        del token_ids[0], offsets[0]
    if drop_eos and _ends_in_eos(token_ids, offsets, tokenizer):
        del token_ids[-1], offsets[-1]
    return token_ids, offsets


def _ends_in_eos(token_ids: Sequence[int], offsets: Sequence[Any], tokenizer: Any) -> bool:
    """Whether the last token is one of EOS that stands for no character: the tokenizer appended it."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return len(token_ids) > 1 and token_ids[-1] == eos != bos and offsets[-1][0] == offsets[-1][1]


def eos_note(table: pl.DataFrame, tokenizer: Any, spec: PromptsSpec) -> str | None:
    """A note where the tokenizer appends EOS to plain text, or where it is to be kept and there is none.

    Args:
        table: from `read_prompts`.
    """
    rows = [row for row in table.select("id", *spec.roles).iter_rows(named=True) if not row.get("token_ids")]
    plain = sum(is_plain(row, spec) for row in rows)
    probe = tokenizer("a", return_offsets_mapping=True)
    appends = _ends_in_eos(probe["input_ids"], probe["offset_mapping"], tokenizer)
    if plain and appends:
        said = f"the tokenizer appends {tokenizer.eos_token!r} to plain text, in {plain} prompts; "
        kept = "it is kept, and 'decision' is that token"
        left = "it is left out, and 'decision' is the text's last token (keep_eos = true keeps it)"
        return said + (kept if spec.keep_eos else left)
    return "keep_eos changes nothing: no token is appended to these prompts" if spec.keep_eos else None
