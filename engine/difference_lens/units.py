"""What counts as one observation: pairs, prompts or categories; and of rows that begin alike only one.

A state depends on the tokens up to its own: prompts or texts of the same tokens so far have one state,
however many they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from engine.difference_lens.spec import DifferenceLens, Unit
from engine.errors import PatchError
from engine.lab.experiment import Lab, resampling_groups
from engine.lab.units import CLUSTER, category_units, resampling_units, unit_name
from engine.stats.resampling import unit_index

__all__ = ["ends_of", "opened_by", "told_apart", "units_of"]


def units_of(unit: Unit, prompts: pl.DataFrame) -> tuple[Int[np.ndarray, " n"], str]:
    """The unit of each chosen prompt, 0 … G − 1, and what a unit is called.

    Raises:
        PatchError: categories are asked for, and there are none or a single one.
    """
    if unit == "auto":
        return resampling_units(prompts), unit_name(prompts)
    if unit == "prompt":
        own = resampling_groups(prompts)
        return own, "pair" if np.unique(own).size < prompts.height else "prompt"
    known = prompts["category"].drop_nulls().n_unique() if "category" in prompts.columns else 0
    units = category_units(prompts) if known else np.zeros(1, dtype=np.int64)
    if known and units.max() > 0:
        return units, CLUSTER
    raise PatchError(
        "The prompts have no categories whose signs could be flipped.",
        expected="at least 2 categories of the chosen prompts",
        given="1 category" if known else "none",
        next_step="take prompts or pairs as the unit, or choose more prompts.",
    )


def ends_of(spec: DifferenceLens, lab: Lab, position: str, rows: Int[np.ndarray, " n"]) -> list[Hashable]:
    """What each prompt's states at a position depend on: its tokens up to there, in both models.

    Of a mean over tokens, all of the prompt's.
    """
    found = []
    for model in spec.models():
        ids = lab.token_ids(model, rows)
        try:
            last = lab.places(model, position, rows).tolist()
        except PatchError:  # several tokens
            last = [len(one) - 1 for one in ids]
        found.append([tuple(one[: at + 1]) for one, at in zip(ids, last, strict=True)])
    return list(zip(*found, strict=True))


def opened_by(ids: Sequence[Sequence[int]]) -> Int[np.ndarray, " n"]:
    """The unit of each text, 0 … G − 1: texts with one token where they first part are one.

    What they share from there on, their states have in common at every later token too.
    """
    part = next((one for one in zip(*ids, strict=False) if len(set(one)) > 1), None)
    return np.zeros(len(ids), dtype=np.int64) if part is None else unit_index(len(ids), np.array(part))


def told_apart(
    unit: Int[np.ndarray, " n"], beginnings: Sequence[Hashable]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """The first row of every different beginning, and the unit of each, 0 … G − 1.

    Units that share a beginning are one.
    """
    number = {key: i for i, key in enumerate(dict.fromkeys(beginnings))}
    label = np.array([number[key] for key in beginnings])
    units = int(unit.max()) + 1
    size = units + len(number)
    links = coo_array((np.ones(len(label)), (unit, units + label)), shape=(size, size))
    joined = connected_components(links, directed=False)[1][unit]
    first = np.unique(label, return_index=True)[1]
    return first, unit_index(len(first), joined[first])
