"""A sample of tokens and its single draws, by their names."""

from __future__ import annotations

from dataclasses import replace

from engine.errors import PromptsError
from engine.prompts.positions import parse_position


def draws_of(text: str) -> tuple[str, ...]:
    """The single draws of a whole sample, each a position of one token; () for any other position."""
    try:
        parsed = parse_position(text)
    except PromptsError:
        return ()
    if parsed.name != "sample" or parsed.draw:
        return ()
    return tuple(str(replace(parsed, draw=draw)) for draw in range(1, parsed.k + 1))


def sample_of(text: str) -> tuple[str, int]:
    """The whole sample that a single draw belongs to, and its number from 1; ("", 0) for another position."""
    try:
        parsed = parse_position(text)
    except PromptsError:
        return "", 0
    return (str(replace(parsed, draw=0)), parsed.draw) if parsed.draw else ("", 0)
