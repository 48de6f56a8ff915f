"""Which activations a study keeps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from engine.errors import PromptsError, StudyError
from engine.prompts.positions import KINDS, parse_position
from engine.prompts.span_spec import SpanPosition
from engine.similarity.sampling import MOST
from engine.spec import MOST_ENTRIES, Frozen, later

Component = Literal["resid", "attn_out", "mlp_out", "head_z"]
Position = Annotated[
    Annotated[str, Tag("name")] | Annotated[SpanPosition, Tag("span")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "span"),
]
"""A position by its name, or one that the study defines."""


class CaptureSpec(Frozen):
    """Which activations are kept.

    `layers` are absolute block indices; with "all", `stride` takes each n-th of them, from 0.
    `unit_prompts` is the number of prompts of one commit, `batch_tokens` the token budget of one forward
    pass. `similarity_prompts` is the number of prompts beyond which similarity looks at a random sample of
    that many.
    """

    components: tuple[Component, ...] = Field(
        default=("resid", "attn_out", "mlp_out", "head_z"), min_length=1
    )
    positions: tuple[Position, ...] = Field(
        default=("last_content", "decision", "mean"), min_length=1, max_length=MOST_ENTRIES
    )
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0, le=100_000)], ...] = "all"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    unit_prompts: int = Field(default=64, ge=1, le=1_000_000)
    batch_tokens: int = Field(default=4096, ge=1, le=1_000_000_000)
    similarity_prompts: int = Field(default=MOST, ge=16, le=1_000_000)
    stride: int = later(1, ge=1, le=100_000)

    @field_validator("components")
    @classmethod
    def _ordered(cls, value: tuple[Component, ...]) -> tuple[Component, ...]:
        order: tuple[Component, ...] = ("resid", "attn_out", "mlp_out", "head_z")
        return tuple(name for name in order if name in value)

    @field_validator("positions")
    @classmethod
    def _known_positions(cls, value: tuple[str | SpanPosition, ...]) -> tuple[str | SpanPosition, ...]:
        try:
            found = tuple(str(parse_position(one)) if isinstance(one, str) else one for one in value)
        except PromptsError as error:
            raise ValueError(str(error)) from None
        names = [name_of(one) for one in found]
        if len(set(names)) != len(names):
            raise ValueError("each position once")
        taken = [one.name for one in found if isinstance(one, SpanPosition) and one.name in KINDS]
        if taken:
            raise ValueError(f"another name than {taken[0]!r}, which is a position of Patchbay's")
        return found

    @property
    def position_names(self) -> tuple[str, ...]:
        """Names of the positions, in order."""
        return tuple(map(name_of, self.positions))

    @field_validator("layers")
    @classmethod
    def _sorted_layers(cls, value: Any) -> Any:
        if value == "all":
            return value
        if not value:
            raise ValueError('at least one layer, or "all"')
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _stride_of_all(self) -> CaptureSpec:
        if self.stride > 1 and self.layers != "all":
            raise ValueError("'stride' goes with layers = \"all\"; a list names its blocks itself")
        return self

    def blocks(self, n_layers: int) -> tuple[int, ...]:
        """The asked block indices for a model of `n_layers` blocks; StudyError when one is out of range."""
        if self.layers == "all":
            return tuple(range(0, n_layers, self.stride))
        if self.layers[-1] >= n_layers:
            raise StudyError(
                "The study's capture.layers asks for a block that the model doesn't have.",
                expected=f"indices 0 to {n_layers - 1}",
                given=self.layers[-1],
                next_step="lower capture.layers (or --layers) to blocks of the model.",
            )
        return self.layers


def name_of(position: str | SpanPosition) -> str:
    """The name of a position, defined here or by the study."""
    return position if isinstance(position, str) else position.name
