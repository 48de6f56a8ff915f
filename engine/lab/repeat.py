"""An experiment run once more, to see whether the same numbers come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine.lab.experiment import Experiment, experiment_from_json


class Repeat(Experiment):
    """Another run of a stored experiment, kept beside the first one.

    Attributes:
        of: the experiment's `to_json`. attempt: which repetition this is, from 1.
    """

    runner: ClassVar[str] = "engine.lab.run_repeat:run"

    job: Literal["repeat"] = "repeat"
    of: dict[str, Any]
    attempt: int = Field(default=1, ge=1)

    def experiment(self) -> Experiment:
        """What is run again; raises PatchError where it can't be read."""
        return experiment_from_json(self.of)

    def models(self) -> tuple[str, ...]:
        """The repeated experiment's models."""
        return self.experiment().models()

    def describe(self) -> str:
        """One line for lists of jobs."""
        return f"again ({self.attempt}): {self.experiment().describe()}"


def _is_kl(column: str, kind: pl.DataType) -> bool:
    return column.split("_", maxsplit=1)[0] == "kl" and kind.is_numeric()


def compared(tables: Mapping[str, pl.DataFrame]) -> str:
    """What a repetition is judged by: "KL" where a table has any, else "number" (scores, rates, counts)."""
    kls = any(_is_kl(*column) for table in tables.values() for column in table.schema.items())
    return "KL" if kls else "number"


def largest_difference(first: Mapping[str, pl.DataFrame], again: Mapping[str, pl.DataFrame]) -> float | None:
    """Largest |difference| between two results, over every column of what is `compared` (KLs in nats).

    Returns:
        None where their tables have other names, columns or rows: they can't be compared.
    """
    if set(first) != set(again):
        return None
    largest, only_kls = 0.0, compared(first) == "KL"
    for name, table in first.items():
        if table.columns != again[name].columns or table.height != again[name].height:
            return None
        kinds = table.schema.items()
        wanted = [c for c, t in kinds if (_is_kl(c, t) if only_kls else t.is_numeric() or t == pl.Boolean)]
        for column in wanted:
            a, b = (own[column].cast(pl.Float64).to_numpy() for own in (table, again[name]))
            both = np.isfinite(a) & np.isfinite(b)
            if (np.isfinite(a) != np.isfinite(b)).any():
                return None
            largest = max(largest, float(np.abs(a - b)[both].max(initial=0.0)))
    return largest
