"""Rows of the prompts table by their ids."""

from __future__ import annotations

import numpy as np
import polars as pl

from engine.errors import PatchError


def row_of(prompts: pl.DataFrame, name: str) -> int:
    """The row of a prompt; PatchError where there is none of this id."""
    rows = np.flatnonzero((prompts["id"] == name).to_numpy())
    if rows.size != 1:
        raise PatchError(
            "The study has no such prompt.",
            expected=f"the id of one of {prompts.height} prompts, such as {prompts['id'][0]!r}",
            given=repr(name),
        )
    return int(rows[0])
