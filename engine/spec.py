"""What studies and experiments are made of: frozen models, settings that came later, and local paths."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)

__all__ = ["MOST_ENTRIES", "Frozen", "Lasting", "LocalPath", "later", "resolved"]

LONGEST_PATH = 4000
LONGEST_TEXT = 100_000
MOST_ENTRIES = 1000
"""Characters of a text, and entries of a list, in a study."""


_LATER = "later"


def later(default: Any, **limits: Any) -> Any:
    """A field that was added after results were stored. At its default it isn't written: descriptions made
    before have the content hash that they had, and mean what they meant."""
    return Field(default=default, json_schema_extra={_LATER: True}, **limits)


class Lasting(BaseModel):
    """A description whose content hash outlives new fields, which are declared by `later`."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = written(self)
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get(_LATER) and getattr(self, name) == field.default:
                found.pop(name, None)
        return found


class Frozen(Lasting):
    """A part of a study: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, str_max_length=LONGEST_TEXT
    )


def resolved(value: Any, info: ValidationInfo) -> Any:
    """Makes a path absolute against the study's folder (from the validation context).

    ValueError for text that no file can be named: too long, with control characters or half characters, "".
    """
    folder = (info.context or {}).get("folder")
    if not isinstance(value, (str, Path)):
        return value
    text = str(value)
    if not text or len(text) > LONGEST_PATH or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ValueError(f"a path, of 1 to {LONGEST_PATH} characters without control characters")
    if folder is None:
        return value
    try:
        return Path(os.path.normpath(Path(folder) / Path(value).expanduser()))
    except RuntimeError:
        raise ValueError("a path whose '~' is a home folder of this machine") from None


LocalPath = Annotated[Path, BeforeValidator(resolved)]
