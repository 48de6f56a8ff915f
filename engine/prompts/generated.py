"""Answers that a model of the study gives to its prompts: which it is asked, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.prompts.span_spec import SpanPosition
from engine.prompts.spec import GENERATED, GeneratedAnswers, PromptsSpec
from engine.prompts.table import GENERATED_COLUMNS
from engine.prompts.usable import left

__all__ = [
    "ANSWERS",
    "TOGETHER",
    "Answer",
    "Asked",
    "answered",
    "ask",
    "expected",
    "foreseen",
    "read_otherwise",
    "text_of",
]

TOGETHER = 64
"""Prompts that are answered and kept together."""

ANSWERS: dict[str, Any] = {
    "id": pl.String,
    "token_ids": pl.List(pl.Int32),
    "ended": pl.Boolean,
    "text": pl.String,
}
"""Columns of a table of answers: an `Answer` under its prompt's id."""


@dataclass(frozen=True)
class Asked:
    """Prompts that a model answers, in the order of the files.

    Attributes:
        model: its name. ids: the prompts'. token_ids: what it reads of each. most: tokens of an answer.
    """

    model: str
    ids: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    most: int


@dataclass(frozen=True)
class Answer:
    """What a model said: its tokens without the one that ended it, whether one did, and their text."""

    token_ids: tuple[int, ...]
    ended: bool
    text: str


def ask(
    table: pl.DataFrame,
    encoded: pl.DataFrame,
    spec: PromptsSpec,
    max_length: int,
    switch: int | None,
    remarks: list[str],
) -> tuple[pl.DataFrame, Asked]:
    """The prompts that can be answered, and what the model is asked.

    Args:
        table: from `read_prompts`. encoded: the same prompts without answers, for the model that answers.
        max_length, switch: of that model; `switch` as in `engine.models.rotary.check_one_side`.
        remarks: gets those that name prompts dropped.

    Raises:
        PromptsError: prompts that leave no room for an answer, unless these are dropped.
    """
    wanted = spec.answers
    assert isinstance(wanted, GeneratedAnswers)
    counts = encoded["token_ids"].list.len().cast(pl.Int64)
    cramped = counts + wanted.max_tokens > max_length
    if switch is not None:
        cramped = cramped | ((counts <= switch) & (counts + wanted.max_tokens > switch))
    if spec.too_long == "refuse" and cramped.any():
        _refuse_cramped(table, counts, cramped, wanted, max_length, switch)
    kept = left(table["id"], cramped, f"leave no room for an answer of {wanted.max_tokens} tokens", remarks)
    table, ids = table[kept], encoded["token_ids"][kept].to_list()
    return table, Asked(wanted.generate, tuple(table["id"]), tuple(map(tuple, ids)), wanted.max_tokens)


def _refuse_cramped(
    table: pl.DataFrame,
    counts: pl.Series,
    cramped: pl.Series,
    wanted: GeneratedAnswers,
    max_length: int,
    switch: int | None,
) -> None:
    row = int(cramped.arg_true()[0])
    crossed = counts[row] + wanted.max_tokens <= max_length
    limit = switch if crossed else max_length
    turned = ", where its rotary factors change (LongRoPE)" if crossed else ""
    raise PromptsError(
        f"Prompt {table['id'][row]!r} leaves {wanted.generate!r} no room for its answer.",
        expected=f"prompt and answer of at most {limit} tokens{turned}",
        given=f"{counts[row]} tokens and up to {wanted.max_tokens} more; {cramped.sum()} of {table.height} "
        "prompts are so",
        next_step='lower prompts.answers.max_tokens, shorten the prompts, or set too_long = "drop".',
    )


def expected(table: pl.DataFrame, asked: Asked, tokenizer: Any) -> pl.DataFrame:
    """The prompts with a text in the place of each answer: the user's own, as long as an answer may be."""
    texts = table["text"].to_list()
    made = tokenizer(texts, add_special_tokens=False)["input_ids"]
    stand_ins = []
    for text, ids in zip(texts, made, strict=True):
        characters = max(1, asked.most * len(text) // max(1, len(ids)))
        stand_ins.append((f"{text} " * (characters // len(text) + 1))[:characters].strip() or text.strip())
    return table.with_columns(pl.Series(GENERATED, stand_ins, pl.String))


def foreseen(positions: Sequence[str | SpanPosition]) -> tuple[str | SpanPosition, ...]:
    """The positions as far as they are known before answers are: a pattern in them may lie anywhere."""
    return tuple(
        one.model_copy(update={"regex": "(?s).+", "within": "answer"})
        if isinstance(one, SpanPosition) and one.regex is not None and one.within != "text"
        else one
        for one in positions
    )


def answered(
    table: pl.DataFrame, asked: Asked, answers: Mapping[str, Answer], spec: PromptsSpec, remarks: list[str]
) -> pl.DataFrame:
    """The prompts with `GENERATED_COLUMNS`.

    Args:
        table, asked: from `ask`.
        answers: by the prompt's id, one for each.
        remarks: gets how many answers were cut, and names prompts dropped.

    Raises:
        PromptsError: an answer without text, unless such prompts are dropped; a prompt without answer.
    """
    lost = [name for name in asked.ids if name not in answers]
    if lost:
        raise PromptsError(
            "The answers that were generated are of other prompts.",
            expected="one for every prompt of the study",
            given=f"{len(lost)} of {len(asked.ids)} without, e.g. {lost[0]!r}",
            next_step="choose another folder with --store: the prompts have changed since.",
        )
    given = [answers[name] for name in asked.ids]
    cut = sum(not one.ended for one in given)
    said = f"answers are those of {asked.model!r}, greedily, of at most {asked.most} tokens"
    remarks.append(f"{said}; {cut} of {len(given)} were cut there")
    empty = pl.Series([not one.text.strip() for one in given], dtype=pl.Boolean)
    if spec.unusable == "refuse" and empty.any():
        names = table["id"].filter(empty).to_list()
        raise PromptsError(
            f"{asked.model!r} answers prompts with nothing.",
            expected="an answer of at least one character to every prompt",
            given=f"{len(names)} of {table.height} without: {', '.join(map(repr, names[:3]))}"
            + (" …" if len(names) > 3 else ""),
            next_step='leave these prompts out, or set unusable = "drop" under [prompts].',
        )
    values: dict[str, list[Any]] = {
        GENERATED: [one.text for one in given],
        "generated_by": [asked.model] * len(given),
        "generated_ended": [one.ended for one in given],
    }
    table = table.with_columns(
        pl.Series(name, values[name], kind) for name, kind in GENERATED_COLUMNS.items()
    )
    return table[left(table["id"], empty, f"get no answer from {asked.model!r}", remarks)]


def read_otherwise(
    encoded: pl.DataFrame, asked: Asked, answers: Mapping[str, Answer], eos: int | None = None
) -> str | None:
    """A remark where the model reads its own answers as other tokens than it said; None where it doesn't.

    Args:
        encoded: of the model that answered, with its answers.
        eos: its end-of-text token where the study keeps one that the tokenizer appends.
    """
    said = {
        name: [*ids, *answers[name].token_ids] for name, ids in zip(asked.ids, asked.token_ids, strict=True)
    }
    other = sum(
        ids not in (said[name], [*said[name], eos])
        for name, ids in encoded.select("id", "token_ids").iter_rows()
    )
    if not other:
        return None
    return (
        f"{other} of {encoded.height} answers are read as other tokens than {asked.model!r} gave: a "
        "tokenizer may write the same text otherwise, and templates may trim it"
    )


def text_of(tokenizer: Any, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """An answer's text as it follows its prompt, without special tokens and without a character cut in half.

    Decoded with the prompt before it: alone, some tokenizers leave out the white space it begins with.
    """
    before, whole = (
        str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for ids in (prompt, [*prompt, *answer])
    )
    alone = tokenizer.decode(list(answer), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = whole[len(before) :] if whole.startswith(before) else str(alone)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")
