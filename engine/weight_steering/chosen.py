"""The prompts of a run, and how few of them still let a mean be judged."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int

from engine.behaviour.claims import claim_prompts
from engine.lab.experiment import chosen_rows, resampling_groups
from engine.lab.units import resampling_units
from engine.stats.means import FEWEST
from engine.weight_steering.spec import WeightSteering

__all__ = ["chosen", "fewest", "limited", "spread"]

LEAST, STEP = 24, 1.25
"""Prompts of a split that are tried first, and how many more each time."""


def chosen(spec: WeightSteering, prompts: pl.DataFrame) -> dict[tuple[str, str], Int[np.ndarray, " n"]]:
    """Rows of the prompts table by (role, split), at most `spec.prompts` of each.

    Raises:
        PatchError: a role or split without a prompt.
    """
    pairs = resampling_groups(prompts)
    return {
        (role, split): limited(chosen_rows(prompts, split, group), pairs, spec.prompts)
        for role, group in (("wanted", spec.where), ("neutral", spec.neutral))
        for split in ("train", "validation")
    }


def fewest(spec: WeightSteering, prompts: pl.DataFrame) -> int:
    """About the least `prompts` of which validation has `FEWEST` units for every mean, or as all have.

    Units are what intervals draw (`engine.lab.units`): prompts, pairs, or whole categories, of which few
    prompts have fewer than of pairs. Agreement is a mean over claims alone, KL over the neutral prompts.
    """

    def units(most: int | None) -> int:
        parts = chosen(spec.model_copy(update={"prompts": most}), prompts)
        rows = np.unique(np.concatenate(list(parts.values())))
        drawn = resampling_units(prompts[rows])
        wanted, neutral = (np.isin(rows, parts[role, "validation"]) for role in ("wanted", "neutral"))
        claims = np.zeros(len(rows), dtype=bool)
        asked = np.isin(rows, np.concatenate([parts["wanted", "train"], parts["wanted", "validation"]]))
        claims[asked] = claim_prompts(spec.wording, prompts[rows[asked]])
        return min(np.unique(drawn[inside]).size for inside in (wanted & claims, neutral))

    enough, most = min(FEWEST, units(None)), LEAST
    while most < prompts.height and units(most) < enough:
        most = int(most * STEP)
    return most


def spread(places: np.ndarray, groups: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of some places, whole groups, evenly spread over them."""
    members: dict[int, list[int]] = {}
    for place in places.tolist():
        members.setdefault(int(groups[place]), []).append(place)
    units = list(members.values())
    size = max(map(len, units), default=1)
    count = min(len(units), most // size)
    chosen = np.linspace(0, len(units) - 1, count).round().astype(int)
    return np.array([place for unit in chosen for place in units[unit]], dtype=np.int64)


def limited(rows: np.ndarray, groups: np.ndarray, most: int | None) -> np.ndarray:
    """At most so many of some rows, but two pairs or prompts at least."""
    if most is None or len(rows) <= most:
        return rows
    largest = int(np.unique(groups[rows], return_counts=True)[1].max())
    return spread(rows, groups, max(most, 2 * largest))
