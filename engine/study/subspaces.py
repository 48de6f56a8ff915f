"""The `[subspaces]` part of a study: what is captured for subspace scores over a weight change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.prompts.spec import PromptFilter
from engine.spec import MOST_ENTRIES, Frozen, LocalPath, later

__all__ = ["SubspacesSpec", "check_deltas"]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1, max_length=MOST_ENTRIES)]


class SubspacesSpec(Frozen):
    """Personas, prompts and weight changes of a sweep over subspaces. The base is the study's first model.

    `deltas` are models of the study or contrasts; none given: every model with the base's tensors, and
    every contrast. `positive` and `negative` are system messages of the two personas: the i-th fit prompt
    takes entry i mod n of both. `where` says which prompts are used, None all. At most `fit` of them from the
    train split build bases, and at most `evaluate` of the validation split carry the label. `template` is how
    prompts under a persona are rendered: as the study's, or "chat" or "plain" where those without one are
    not. `probe` are the prompts that carry the label instead: a set of their own (questions to be answered
    with yes or no, say), of either split, and none that `where` has in train. `candidates` is a
    Python file with a user's own candidates; it enters the fingerprint by its content.
    """

    positive: Texts
    negative: Texts
    deltas: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    where: PromptFilter | None = None
    fit: int = Field(default=40, ge=2, le=1_000_000)
    evaluate: int = Field(default=40, ge=2, le=1_000_000)
    candidates: LocalPath | None = None
    template: Literal["prompts", "chat", "plain"] = later("prompts")
    probe: PromptFilter | None = later(None)

    @field_validator("positive", "negative")
    @classmethod
    def _say_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in value):
            raise ValueError("a persona's message says something")
        return value

    @field_validator("deltas")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each weight change once")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> SubspacesSpec:
        if len(self.positive) != len(self.negative):
            given = f"{len(self.positive)} and {len(self.negative)}"
            raise ValueError(f"as many positive as negative personas: {given} are given")
        return self

    def local_paths(self) -> dict[str, Path]:
        """The local files, by key."""
        return {} if self.candidates is None else {"candidates": self.candidates}


def check_deltas(spec: SubspacesSpec, models: Sequence[str], contrasts: Collection[str]) -> None:
    """ValueError for a weight change that is neither a model other than the first nor a contrast."""
    known = (*models[1:], *contrasts)
    for name in spec.deltas:
        if name not in known:
            first = name == models[0]
            what = (
                "is the first model, which has no difference from itself" if first else "is not in the study"
            )
            raise ValueError(f"deltas: {name!r} {what}; known are {', '.join(known) or 'none'}")
