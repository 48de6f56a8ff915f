"""Prompts as every model of a study reads them: rendered, tokenised, fit for its context, with positions."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.models.sites import ModelTaps
from engine.prompts.generated import Answer, Asked, answered, ask, expected, foreseen
from engine.prompts.positions import Positions, positions
from engine.prompts.span_spec import SpanPosition
from engine.prompts.spans import span_position
from engine.prompts.spec import GeneratedAnswers
from engine.prompts.tokens import encode
from engine.prompts.usable import check_one_vocabulary, fitting, placed, with_texts
from engine.study.study import Study

__all__ = [
    "alike_tokenizers",
    "encode_all",
    "resolve_positions",
    "usable_prompts",
    "with_answers",
]


def encode_all(
    study: Study,
    table: pl.DataFrame,
    tokenizers: Mapping[str, Any],
    reach: Mapping[str, int],
) -> dict[str, pl.DataFrame]:
    """Encoded prompts of the models whose reach in tokens is given."""
    check_one_vocabulary(table, {name: tokenizers[name] for name in reach})
    header = "assistant_start" in study.capture.positions
    found = {}
    for name, most in reach.items():
        try:
            found[name] = encode(table, tokenizers[name], study.prompts, most, header=header)
        except PromptsError as error:
            if len(reach) == 1:
                raise
            raise PromptsError(
                f"{error.what} (model {name!r})",
                expected=error.expected,
                given=error.given,
                next_step=error.next_step,
            ) from error
    return found


def usable_prompts(
    study: Study,
    table: pl.DataFrame,
    encoded: dict[str, pl.DataFrame],
    reach: Mapping[str, int],
    remarks: list[str],
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """Prompts without those that the study lets drop."""
    rows = fitting(encoded, reach, remarks)
    table, encoded = table[rows], {name: frame[rows] for name, frame in encoded.items()}
    table = with_texts(table, next(iter(encoded.values())))
    if study.prompts.unusable == "drop":
        rows = placed(encoded, table, study.capture.positions, remarks)
        table, encoded = table[rows], {name: frame[rows] for name, frame in encoded.items()}
    return table, encoded


def with_answers(
    study: Study,
    table: pl.DataFrame,
    tokenizers: Mapping[str, Any],
    shapes: Mapping[str, ModelTaps],
    alike: Mapping[str, str],
    reach: dict[str, int],
    answers: Mapping[str, Answer] | None,
    remarks: list[str],
) -> tuple[pl.DataFrame, Asked | None, Study, dict[str, int]]:
    """Prompts with what a model of the study answers; of other studies, everything as it is.

    Args:
        alike: from `alike_tokenizers`. reach: tokens that each of these models can read.
        answers: None before there are any: texts of the greatest length stand in, in which a pattern lies
            anywhere and which may be of any length.

    Returns:
        the prompts, what the model is asked, and study and reach as they hold for these prompts.
    """
    if not isinstance(study.prompts.answers, GeneratedAnswers):
        return table, None, study, reach
    name = study.prompts.answers.generate
    encoded = encode_all(_without_answers(study), table, tokenizers, reach)
    rows = fitting(encoded, reach, remarks)
    shape, frame = shapes[name], encoded[alike[name]][rows]
    table, asked = ask(table[rows], frame, study.prompts, shape.max_length, shape.rotary_switch, remarks)
    if answers is not None:
        return answered(table, asked, answers, study.prompts, remarks), asked, study, reach
    capture = study.capture.model_copy(update={"positions": foreseen(study.capture.positions)})
    foretold = study.model_copy(update={"capture": capture})
    return expected(table, asked, tokenizers[name]), asked, foretold, dict.fromkeys(reach, sys.maxsize)


def _without_answers(study: Study) -> Study:
    """The study as the model that answers reads it: no answer, and no end-of-text before one."""
    prompts = study.prompts.model_copy(update={"answers": None, "keep_eos": False})
    capture = study.capture.model_copy(update={"positions": ("decision",)})
    return study.model_copy(update={"prompts": prompts, "capture": capture})


def resolve_positions(
    study: Study, table: pl.DataFrame, encoded: pl.DataFrame, tokenizer: Any
) -> dict[str, Positions]:
    """Every position of the study, resolved for one model."""
    return {
        name: span_position(encoded, table, position)
        if isinstance(position, SpanPosition)
        else positions(encoded, position, tokenizer, study.seed)
        for name, position in zip(study.capture.position_names, study.capture.positions, strict=True)
    }


def alike_tokenizers(tokenizers: Mapping[str, Any], shapes: Mapping[str, ModelTaps]) -> dict[str, str]:
    """Model -> the first one that makes the same tokens of every prompt and reaches as far."""
    seen: dict[Any, str] = {}
    found = {}
    for name, tokenizer in tokenizers.items():
        fast = getattr(tokenizer, "backend_tokenizer", None)
        what = id(tokenizer) if fast is None else hashlib.sha256(fast.to_str().encode()).digest()
        known = (
            what,
            str(tokenizer.chat_template),
            str(tokenizer.special_tokens_map),
            shapes[name].max_length,
        )
        found[name] = seen.setdefault(known, name)
    return found
