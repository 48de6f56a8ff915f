"""What every part of a study file is made of: frozen models and paths beside the study file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

__all__ = ["Frozen", "LocalPath", "resolved"]


class Frozen(BaseModel):
    """A part of a study: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def resolved(value: Any, info: ValidationInfo) -> Any:
    """Makes a path absolute against the study's folder (from the validation context)."""
    folder = (info.context or {}).get("folder")
    if folder is None or not isinstance(value, (str, Path)):
        return value
    return Path(os.path.normpath(Path(folder) / Path(value).expanduser()))


LocalPath = Annotated[Path, BeforeValidator(resolved)]
