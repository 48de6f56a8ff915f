"""Every head of every block substituted alone: the description of the experiment."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from engine.heads.spec import HeadSubsets, Substitute, Vectors
from engine.lab.experiment import Experiment, ReadAt, Where, one_reading


class HeadMap(Experiment):
    """The effect of each head alone, in every block that both models have. Attributes as in `HeadSubsets`."""

    runner: ClassVar[str] = "engine.heads.run_map:run"

    job: Literal["head_map"] = "head_map"
    target: str
    source: str
    component: Substitute
    vectors: Vectors = "literal"
    position: str = "last_content"
    read_at: ReadAt = "patched"
    reverse_kl: bool = False
    where: Where = Where()

    @model_validator(mode="before")
    @classmethod
    def _read_once(cls, data: Any) -> Any:
        return one_reading(data)

    @model_validator(mode="after")
    def _usable_in_every_block(self) -> Self:
        self.at(0)
        return self

    def at(self, layer: int) -> HeadSubsets:
        """The same question asked of one block in depth."""
        return HeadSubsets(layer=layer, **self.model_dump(exclude={"job"}))

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def describe(self) -> str:
        """One line for lists of jobs: "tuned ← base, every block's heads (head_out, literal) at decision"."""
        how = f"every block's heads ({self.component}, {self.vectors})"
        return f"{self.target} ← {self.source}, {how} at {self.position}"
