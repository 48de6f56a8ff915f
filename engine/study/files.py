"""Reading a study file, and the files that it names, as far as a study itself looks at them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from engine.errors import StudyError

__all__ = ["must_exist", "read_toml"]

LARGEST = 1 << 20
"""Bytes of a study file; the largest shipped one has 4 kB."""


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain values.

    Raises:
        StudyError: no file, a file too large for a study, or one that isn't TOML.
    """
    if not path.is_file():
        given = "a folder" if path.is_dir() else "no plain file" if path.exists() else "nothing at that path"
        raise StudyError(
            f"The study file {path} isn't there.",
            expected="a TOML file",
            given=given,
            next_step="check the path; studies/ has examples.",
        )
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise _invalid(path, error.strerror or str(error), "check who may read the file.") from None
    if len(data) > LARGEST:
        raise _invalid(path, f"more than {LARGEST:,} bytes", "name the study file; prompts are other files.")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise _invalid(
            path, "brackets in brackets without end", "nest no deeper than a study does."
        ) from None
    except ValueError as error:  # TOML's own errors, no UTF-8, and numbers of thousands of digits
        raise _invalid(path, str(error)[:300], "mend the line that the message names.") from None


def _invalid(path: Path, given: str, next_step: str) -> StudyError:
    return StudyError(
        f"The study file {path} is not valid TOML.",
        expected="UTF-8 text in TOML syntax",
        given=given,
        next_step=next_step,
    )


def must_exist(path: Path, key: str) -> None:
    """StudyError when a file or folder that the study names isn't there."""
    if not path.exists():
        raise StudyError(
            f"The study's {key} names something that isn't there.",
            expected="an existing file or folder (relative paths start at the study file's folder)",
            given=str(path),
            next_step=f"correct {key}, or put the file there.",
        )
