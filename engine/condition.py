"""One live patch: what to replace, with what, where and on which prompts. A Condition in, KLs out.

The vector captured at one site and position of the source model, in the source's own tokenisation, replaces
the target model's activation at the very same site and position of the target's own tokenisation.
KL is KL(patched || unpatched) of the target's next-token distribution, in nats.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.errors import PatchError

Kind = Literal["raw", "literal", "self", "mean"]
Component = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out"]

POSITIONS = ("last_content", "decision", "last_nonspecial")
"""Positions that are one token, and can therefore be patched."""

_HASH_FORMAT = 1


class Where(BaseModel):
    """Which prompts of a split: one language and/or one category; None is all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = None
    category: str | None = None


class Condition(BaseModel):
    """A live patch, frozen; `to_json` and `from_json` are inverse to each other.

    Attributes:
        target, source: model names of the study; the target is run, the source gives the vectors.
        component, layer, heads: the site, the same in both models; heads only for head_z and head_out.
        position: a one-token position, resolved in each model's own tokenisation.
        kind: "raw" (source moment-matched to the target per dimension, moments of the train split), "literal"
            (source as it is), "self" (the target's own activation), "mean" (the target's train mean).
        alphas: every alpha is run, as one batched job; kept sorted.
        scale: "vector": alpha * v; "deviation": mu + alpha * (v - mu) with mu the target's train mean.
        read_at: where the next-token distribution is read: the patched token, or the last one ("decision").
        reverse_kl: KL(unpatched || patched) instead.
        split, where: the prompts reported on.
        top_k: how many next tokens before and after the patch are kept per prompt.
        n_boot, level, seed: bootstrap of the mean KL.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    source: str
    component: Component
    layer: int = Field(ge=0)
    heads: tuple[int, ...] | None = None
    position: str = "last_content"
    kind: Kind = "raw"
    alphas: tuple[float, ...] = (1.0,)
    scale: Literal["vector", "deviation"] = "vector"
    read_at: Literal["patched", "decision"] = "patched"
    reverse_kl: bool = False
    split: Literal["train", "validation", "all"] = "validation"
    where: Where = Where()
    top_k: int = Field(default=5, ge=0, le=50)
    n_boot: int = Field(default=2000, ge=100, le=100_000)
    level: float = Field(default=0.95, gt=0.5, lt=1.0)
    seed: int = 0

    @field_validator("position")
    @classmethod
    def _one_token(cls, value: str) -> str:
        if value not in POSITIONS:
            raise PatchError(
                f"The position {value!r} cannot be patched: it is not one token of the prompt.",
                expected="one of " + ", ".join(POSITIONS),
                given=repr(value),
                next_step="choose a one-token position; means and token samples can only be compared.",
            )
        return value

    @field_validator("alphas")
    @classmethod
    def _usable_alphas(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(math.isfinite(alpha) for alpha in value):
            raise PatchError(
                "The amplitudes alpha cannot be used.",
                expected="at least one, all finite",
                given=value,
            )
        return tuple(sorted({alpha + 0.0 for alpha in value}))

    @field_validator("heads")
    @classmethod
    def _usable_heads(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 0):
            raise PatchError(
                "The heads of a patch cannot be used.", expected="at least one, 0 or more", given=value
            )
        return None if value is None else tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _heads_fit_component(self) -> Condition:
        if self.heads is not None and not self.component.startswith("head"):
            raise PatchError(
                f"{self.component} has no heads.",
                expected="heads only with head_z or head_out",
                given=f"heads {list(self.heads)}",
            )
        return self

    @property
    def needs_source(self) -> bool:
        """Whether the source model's activations take part."""
        return self.kind in ("raw", "literal")

    @property
    def needs_train(self) -> bool:
        """Whether activations of the train split take part (moments, or the target's mean)."""
        return self.kind in ("raw", "mean") or self.scale == "deviation"

    def site_text(self) -> str:
        """The site as text: "resid_post@4", "head_z@3:0,2"."""
        heads = "" if self.heads is None else ":" + ",".join(map(str, self.heads))
        return f"{self.component}@{self.layer}{heads}"

    def describe(self) -> str:
        """One line for lists of jobs: "tuned <- base, resid_post@4 at last_content, raw"."""
        return f"{self.target} ← {self.source}, {self.site_text()} at {self.position}, {self.kind}"

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Condition:
        """Reads `to_json`'s dict; raises PatchError naming each unusable key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "condition"
            raise PatchError(
                f"The patch condition cannot be used: {key}: {first['msg']}.",
                given=repr(first["input"]),
                next_step=f"correct {key!r}.",
            ) from error

    def content_hash(self, fingerprint: str) -> str:
        """Hex SHA-256 of the condition together with the fingerprint of the study it runs in."""
        payload = {"format": _HASH_FORMAT, "fingerprint": fingerprint, "condition": self.to_json()}
        text = json.dumps(payload, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
