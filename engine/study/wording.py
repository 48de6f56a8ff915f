"""Words and patterns of any language that a study brings for its measures of behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from engine.spec import MOST_ENTRIES, Frozen
from engine.texts import lists

Texts = Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_ENTRIES)]
Lists = Annotated[dict[str, Texts], Field(max_length=MOST_ENTRIES)]


class WordingSpec(Frozen):
    """`[wording]`: lists by language, in the place of the built-in ones of that language or beside them.

    refusal, neutral: openings of an answer. yes, no: surface forms of the two words. refuses, agrees,
    disagrees: regular expressions on generated text. style: language -> marker -> regular expressions.
    """

    refusal: Lists = Field(default_factory=dict)
    neutral: Lists = Field(default_factory=dict)
    yes: Lists = Field(default_factory=dict)
    no: Lists = Field(default_factory=dict)
    refuses: Lists = Field(default_factory=dict)
    agrees: Lists = Field(default_factory=dict)
    disagrees: Lists = Field(default_factory=dict)
    style: Annotated[dict[str, Lists], Field(max_length=MOST_ENTRIES)] = Field(default_factory=dict)

    @field_validator("refuses", "agrees", "disagrees")
    @classmethod
    def _patterns(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        lists.check_patterns(value)
        return value

    @field_validator("style")
    @classmethod
    def _style_patterns(
        cls, value: dict[str, dict[str, tuple[str, ...]]]
    ) -> dict[str, dict[str, tuple[str, ...]]]:
        for markers in value.values():
            cls._patterns(markers)
        return value

    @model_validator(mode="after")
    def _tells_something(self, info: ValidationInfo) -> WordingSpec:
        """A stored study keeps the lists that it was made with."""
        if not (info.context or {}).get("stored"):
            lists.check({name: getattr(self, name) for name in (*lists.TEXTS, *lists.PATTERNS)}, self.style)
        return self
