"""Whether a tokenizer is the one that a model was trained with, as far as counts can tell."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.errors import ModelError, PromptsError
from engine.models.sources import pretrained_tokenizer, tokenizer_files
from engine.prompts.positions import content_tokens
from engine.study.study import ModelSpec

__all__ = ["check_known", "check_vocabulary", "other_tokenizer", "tokenizer_hash", "vocabulary_of"]

LEAST_SHARE = 0.5
"""A tokenizer with less than this share of the embedding's rows is another one, or a stand-in. Padding of
vocabularies in use is below a tenth."""

MOST_UNKNOWN = 0.5
"""A prompt with more than this share of its own tokens unknown is no longer that prompt."""


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """ModelError for a tokenizer with more tokens than the model has embeddings, or far fewer.

    Args:
        rows: of the embedding.
    """
    count, name = len(tokenizer), tokenizer.name_or_path
    if count > rows:
        raise ModelError(
            f"The tokenizer {name} has more tokens than the model has embeddings.",
            expected=f"at most {rows}",
            given=count,
            next_step="use the tokenizer that the model was trained with.",
        )
    if count < LEAST_SHARE * rows:
        raise ModelError(
            f"The tokenizer {name} knows far fewer tokens than the model has embeddings.",
            expected=f"about {rows}",
            given=count,
            next_step="name the tokenizer that the model was trained with as 'tokenizer': folder, Hub "
            "id, or another model of the study by name.",
        )


def check_known(encoded: pl.DataFrame, tokenizer: Any, model: str) -> None:
    """PromptsError when the tokenizer doesn't know most of some prompts' own text.

    Args:
        encoded: from `engine.prompts.tokens.encode`. model: its name, for the message.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    lost = []
    columns = ("id", "token_ids", "offsets", "content_start", "content_end")
    for name, ids, offsets, start, end in encoded.select(columns).iter_rows():
        own = content_tokens(offsets, start, end)
        if len(own) and float(np.mean(np.asarray(ids)[own] == unknown)) > MOST_UNKNOWN:
            lost.append(name)
    if lost:
        raise PromptsError(
            f"Of some prompts the tokenizer of model {model!r} knows little: most of their tokens are "
            f"{tokenizer.unk_token!r}.",
            expected="prompts in characters that the model was trained on",
            given=f"{len(lost)} of {encoded.height} prompts, e.g. {lost[0]!r}",
            next_step="check that it is the model's own tokenizer, or leave these prompts out.",
        )


def vocabulary_of(tokenizer: Any) -> dict[str, int] | None:
    """Token string -> id, added tokens too; None without a tokenizer."""
    return None if tokenizer is None else dict(tokenizer.get_vocab())


def tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 over the tokenizer's whole definition and its chat template; None for a slow one."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    text = tokenizer.backend_tokenizer.to_str() + "\0" + str(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()


def other_tokenizer(spec: ModelSpec, tokenizer: Any) -> str | None:
    """A note where the adapter's folder brings another tokenizer or chat template than the one in use."""
    adapter = spec.adapter
    if not isinstance(adapter, Path) or not tokenizer_files(adapter):
        return None
    brought = pretrained_tokenizer(adapter)
    if tokenizer_hash(brought) == tokenizer_hash(tokenizer):
        return None
    same = brought.get_vocab() == tokenizer.get_vocab()
    what = "chat template" if same and brought.chat_template != tokenizer.chat_template else "tokenizer"
    return (
        f"the adapter's folder {adapter.name} has another {what}, which is not used; "
        f'name the folder as the model\'s tokenizer to use it: tokenizer = "{adapter.name}"'
    )
