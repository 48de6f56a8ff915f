"""A sample of tokens and its single draws, by their names."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import polars as pl
from jaxtyping import Int64

from engine.errors import PromptsError
from engine.prompts.positions import parse_position

MOST = 64
"""Draws of a sample that are taken one by one."""


@lru_cache(maxsize=64)
def draws_of(text: str) -> tuple[str, ...]:
    """The single draws of a whole sample, each a position of one token; () for any other position, and for a
    sample of more than `MOST`."""
    try:
        parsed = parse_position(text)
    except PromptsError:
        return ()
    if parsed.name != "sample" or parsed.draw or parsed.k > MOST:
        return ()
    return tuple(str(replace(parsed, draw=draw)) for draw in range(1, parsed.k + 1))


@lru_cache(maxsize=64)
def spelled(text: str) -> str:
    """A whole sample as it is always written, "sample(k=16,skip_last=4)"; any other text as it is."""
    return str(parse_position(text)) if draws_of(text) else text


@lru_cache(maxsize=256)
def sample_of(text: str) -> tuple[str, int]:
    """The whole sample that a single draw belongs to, and its number from 1; ("", 0) for another position."""
    try:
        parsed = parse_position(text)
    except PromptsError:
        return "", 0
    return (str(replace(parsed, draw=0)), parsed.draw) if parsed.draw else ("", 0)


def characters_before(
    encoded: pl.DataFrame, tokens: Int64[np.ndarray, " n"] | np.ndarray
) -> Int64[np.ndarray, " n"]:
    """How many characters of the user's own text a token has read when it ends.

    White space before the text is not counted, which chat templates may take away. A token that goes on
    behind the text counts its characters there too.

    Args:
        encoded: columns offsets, content_start, content_end, rendered, a row for each prompt.
        tokens: (n,) index of one token of each prompt.
    """
    found = []
    columns = ("rendered", "content_start", "content_end", "offsets")
    for (text, start, end, offsets), token in zip(
        encoded.select(columns).iter_rows(), tokens.tolist(), strict=True
    ):
        own = text[start:end]
        found.append(offsets[token][1] - start - (len(own) - len(own.lstrip())))
    return np.array(found, dtype=np.int64)
