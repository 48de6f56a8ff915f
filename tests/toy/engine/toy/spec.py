"""What is asked: a model, a block, a grain."""

from typing import ClassVar, Literal

from pydantic import Field

from engine.lab.experiment import Experiment


class Toy(Experiment):
    """Distances of prompts from their mean at one block."""

    runner: ClassVar[str] = "engine.toy.run:run"
    job: Literal["toy"] = "toy"
    model: str
    layer: int = Field(default=0, ge=0)
    grain: int = Field(default=1, ge=1)

    def models(self) -> tuple[str, ...]:
        return (self.model,)

    def describe(self) -> str:
        return f"toy of {self.model}, block {self.layer}, every prompt of {self.grain}"
