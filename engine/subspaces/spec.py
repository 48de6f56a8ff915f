"""Subspace scores: which named subspace of the stream do stored weight changes use? Runs without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from engine.errors import PatchError
from engine.lab.experiment import Experiment
from engine.spec import later

KS = (*range(1, 17), 24, 32, 48, 64)
CLEANS = (0, 1, 2, 4, 8, 16, 32)
DEFINITIONS = 3
"""Version of the definitions of built-in candidates and nulls; raised where one changes or is added."""
NOTHING_DRAWN = ("n_boot", "level", "seed")
"""Fields of every experiment that mean nothing here: nulls are exact, nothing is sampled."""


class SubspaceScores(Experiment):
    """Scores every candidate at every layer and rank against weight changes of a study with `[subspaces]`.

    Attributes:
        deltas: names of weight changes (models or contrasts); none given: all that the study names.
        broad: rank of the subspaces that some candidates are taken away from; at most the model's width.
        ks: ranks of candidates; those above the model's width are left out.
        cleans: numbers of clean principal directions that specificity takes out; k itself always is one.
        candidates: names; none given: all, the study's own among them where `code` is set.
        fold_norm: take what reads the stream with the gains of the norms before it, and the unembedding with
            the final norm's; False takes the weights as they are stored.
        definitions: version of the candidates' definitions; page and command ask for `DEFINITIONS`. Results
            of an older version stay apart, and keep theirs.
        code: SHA-256 of the study's file of own candidates, which is then run; "" runs no such code.
    """

    runner: ClassVar[str] = "engine.subspaces.run:run"

    job: Literal["subspace_scores"] = "subspace_scores"
    deltas: tuple[str, ...] = ()
    broad: int = Field(default=64, ge=0)
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=KS, min_length=1)
    cleans: tuple[Annotated[int, Field(ge=0)], ...] = CLEANS
    candidates: tuple[str, ...] = ()
    code: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    fold_norm: bool = later(True)
    definitions: int = later(1, ge=1, le=DEFINITIONS)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_drawn(cls, data: Any) -> Any:
        given = [name for name in NOTHING_DRAWN if isinstance(data, Mapping) and name in data]
        if given:
            raise PatchError(
                "Subspace scores draw nothing: their nulls are exact.",
                expected=f"no {', '.join(NOTHING_DRAWN)}",
                given=", ".join(given),
                next_step="leave them out.",
            )
        return data

    @field_validator("ks", "cleans")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @field_validator("deltas", "candidates")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types, without what means nothing here."""
        return self.model_dump(mode="json", exclude=set(NOTHING_DRAWN))

    def models(self) -> tuple[str, ...]:
        """The weight changes asked for by name; models, or contrasts of models."""
        return self.deltas

    def describe(self) -> str:
        """One line for lists of jobs."""
        which = ", ".join(self.deltas) or "all weight changes"
        ranks = f"k = {self.ks[0]}" + (f" to {self.ks[-1]}" if len(self.ks) > 1 else "")
        own = ", with own candidates" if self.code else ""
        broad = "" if self.broad == type(self).model_fields["broad"].default else f", broad rank {self.broad}"
        gains = "" if self.fold_norm else ", norms' gains left out"
        return f"subspace scores of {which}, {ranks}{broad}{gains}{own}"
