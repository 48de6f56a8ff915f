"""What a behaviour run says: means and intervals of every figure, whole and in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from engine.behaviour import numbers as behaviour
from engine.behaviour.claims import column
from engine.behaviour.spec import Behaviour, Figure, figures
from engine.lab.experiment import Lab, resampling_groups
from engine.lab.noise import measured
from engine.lab.units import resampling_units, unit_name
from engine.models.loading import LoadedModel
from engine.stats.uncertainty import Interval


def figures_of(experiment: Behaviour, table: pl.DataFrame) -> dict[str, Any]:
    """Every figure that has a value, and the asymmetry between languages."""
    found = {}
    for figure in figures(experiment):
        cells = _cells(experiment, figure, figure.name, table)
        if cells is not None:
            found[figure.name] = cells
    return {"figures": found} | ({"asymmetry": _asymmetries(table)} if "right" in found else {})


def summary_of(experiment: Behaviour, lab: Lab, lm: LoadedModel, table: pl.DataFrame) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "subject": experiment.subject(),
        **figures_of(experiment, table),
        "n_prompts": table.height,
        "interval": {
            "level": experiment.level,
            "unit": unit_name(table),
        },
        "device": str(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "rounding": measured(lab, [experiment.model]),
        "notes": list(lab.notes),
    }
    if experiment.shared_with is not None and "coverage" in table.columns:
        summary["shared"] = {
            "with": experiment.shared_with,
            "coverage": table["coverage"].mean(),
            "left_out": table["left out"].mean(),
            "figures": {
                f.name: cells
                for f in figures(experiment)
                if (cells := _cells(experiment, f, f"{f.name} on shared", table)) is not None
            },
        }
    return summary


def _cells(experiment: Behaviour, figure: Figure, column: str, table: pl.DataFrame) -> dict[str, Any] | None:
    """Mean and interval of a column over all prompts and in its parts; None where no prompt has a value."""
    if column not in table.columns or table[column].is_null().all():
        return None
    values = table[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    options: dict[str, Any] = {
        "binary": figure.binary,
        "n_boot": experiment.n_boot,
        "level": experiment.level,
        "seed": experiment.seed,
    }
    groups = resampling_groups(table)  # of a part, which may be a category itself
    whole = behaviour.summarise(values, resampling_units(table), **options)
    cells = {"unit": figure.unit, **_cell(whole, int((~np.isnan(values)).sum()))}
    for part in ("category", "language", "label"):
        if part in table.columns and table[part].n_unique() > 1:
            pieces = behaviour.breakdown(values, table[part].to_list(), groups, **options)
            cells[f"by_{part}"] = [{part: p.key, **_cell(p.interval, p.n)} for p in pieces]
    return cells


def _cell(found: Interval, n: int) -> dict[str, Any]:
    """Plain JSON; an end that is not known is None."""
    ends = {"low": found.low, "high": found.high}
    known = {name: None if np.isnan(value) else value for name, value in ends.items()}
    return {"value": found.estimate, **known, "n": n, "method": found.method}


def _asymmetries(table: pl.DataFrame) -> list[dict[str, Any]]:
    right = table["right"].fill_null(float("nan")).to_numpy()
    found = behaviour.language_asymmetry(right, column(table, "language"), column(table, "pair_id"))
    return [
        {
            "languages": list(one.languages),
            "rates": list(one.rates),
            "only": [one.first_only, one.second_only],
            "p": one.p,
            "pairs": one.n,
        }
        for one in found
    ]
