"""A position that a study defines itself: a stretch of every prompt, and which of its tokens is meant."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from engine.spec import Frozen
from engine.texts.patterns import usable

__all__ = ["SpanPosition", "is_name"]

Place = Annotated[int, Field(ge=0, le=100_000_000)]
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def is_name(text: str) -> bool:
    """Whether a span may be called so."""
    return NAME.fullmatch(text) is not None


class SpanPosition(Frozen):
    """A stretch of characters of every prompt, as a token position of its own name.

    Exactly one of `regex` (its first match), `chars` ([start, end) in the user's own text as the file has it)
    and `columns` (the two columns of the prompts that hold start and end). `within` says where the pattern is
    searched: in the user's own text, in the answer, or in the whole rendered "prompt".
    `take` is the stretch's "last" token, its "first", or the "mean" over its tokens.
    """

    name: str
    regex: str | None = None
    chars: tuple[Place, Place] | None = None
    columns: tuple[str, str] | None = None
    within: Literal["text", "answer", "prompt"] = "text"
    take: Literal["last", "first", "mean"] = "last"

    @field_validator("name")
    @classmethod
    def _own_name(cls, value: str) -> str:
        if not is_name(value):
            raise ValueError("small letters, digits and '_', at most 40, the first one a letter")
        return value

    _pattern = field_validator("regex")(usable)

    @model_validator(mode="after")
    def _one_way(self) -> SpanPosition:
        if [self.regex, self.chars, self.columns].count(None) != 2:
            raise ValueError("exactly one of 'regex', 'chars' and 'columns'")
        if self.chars is not None and self.chars[0] >= self.chars[1]:
            raise ValueError("'chars' = [start, end] with start before end")
        if self.regex is None and self.within != "text":
            raise ValueError("'within' needs 'regex': characters are counted in the user's own text")
        return self
