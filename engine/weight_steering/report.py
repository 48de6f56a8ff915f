"""Numbers of a weight-steering run: every figure over α and at equal KL, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from engine.behaviour.numbers import difference, summarise
from engine.stats.means import bootstrap_ratios
from engine.weight_steering.spec import FIGURES, Figure, WeightSteering

SPLITS = ("train", "validation")
UNSTEERED = ("", 0.0)
Key = tuple[str, float]
"""A series and its α; `UNSTEERED` is the model as it is."""


@dataclass(frozen=True)
class Bench:
    """The prompts of a run.

    Attributes:
        rows: (n,) rows of the study's prompts. roles: "wanted", "neutral", "answered" -> (n,) membership.
        in_train: (n,). groups: (n,) for resampling. tokens: (n,) of each prompt, the first left out.
    """

    spec: WeightSteering
    rows: Int[np.ndarray, " n"]
    roles: Mapping[str, Bool[np.ndarray, " n"]]
    in_train: Bool[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]

    def members(self, role: str, split: str) -> Bool[np.ndarray, " n"]:
        """Prompts of a role in a split."""
        return self.roles[role] & (self.in_train if split == "train" else ~self.in_train)


Measured = Mapping[Key, Mapping[str, Float[np.ndarray, " n"]]]
"""(series, α) -> what was measured -> a value per prompt, NaN where it does not apply."""


def curves(bench: Bench, measured: Measured, keys: Sequence[Key]) -> pl.DataFrame:
    """One row per figure, split and (series, α); without figures that fewer than two prompts or pairs have.

    Columns series, alpha, split, figure, value, low, high, change, change_low, change_high (paired, from the
    unsteered model; a factor for perplexity), n: prompts with a value, units: what of them is drawn.
    """
    parts = []
    for figure in FIGURES:
        for split in SPLITS:
            found = _figure(bench, measured, keys, figure, split)
            if found is not None:
                parts.append(found)
    return pl.concat(parts).fill_nan(None)


def _figure(
    bench: Bench, measured: Measured, keys: Sequence[Key], figure: Figure, split: str
) -> pl.DataFrame | None:
    column = "nll" if figure.kind == "perplexity" else figure.name
    base = measured[UNSTEERED].get(column)
    if base is None:
        return None
    every = np.array([measured[key][column] for key in keys])
    kept = bench.members(figure.role, split) & np.isfinite(base) & np.isfinite(every).all(axis=0)
    if np.unique(bench.groups[kept]).size < 2:
        return None
    values, own = every[:, kept], base[kept]
    ends = (_rates if figure.kind == "rate" else _bands)(bench, figure, values, own, kept)
    names = ("value", "low", "high", "change", "change_low", "change_high")
    columns: dict[str, Any] = {
        "series": [series for series, _ in keys],
        "alpha": [alpha for _, alpha in keys],
        "split": [split] * len(keys),
        "figure": [figure.name] * len(keys),
        **dict(zip(names, ends, strict=True)),
        "n": [int(kept.sum())] * len(keys),
        "units": [int(np.unique(bench.groups[kept]).size)] * len(keys),
    }
    schema = dict.fromkeys(names, pl.Float64)
    return pl.DataFrame(columns, schema_overrides=schema)


Ends = tuple[Float[np.ndarray, " c"], ...]


def _bands(
    bench: Bench,
    figure: Figure,
    values: Float[np.ndarray, "c m"],
    own: Float[np.ndarray, " m"],
    kept: Bool[np.ndarray, " n"],
) -> Ends:
    """Means with a bootstrap that draws the same prompts at every α."""
    spec, ratio = bench.spec, figure.kind == "perplexity"
    weight = np.broadcast_to(bench.tokens[kept] if ratio else np.ones(values.shape[1]), values.shape)
    groups = bench.groups[kept]
    options: dict[str, Any] = {"n_boot": spec.n_boot, "level": spec.level, "seed": spec.seed}
    bands = [
        bootstrap_ratios(top, weight.astype(np.float64), groups=groups, **options)
        for top in (values, values - own)
    ]
    ends = [end for band in bands for end in (band.estimate, band.low, band.high)]
    return tuple(np.exp(end) if ratio else end for end in ends)


def _rates(
    bench: Bench,
    figure: Figure,
    values: Float[np.ndarray, "c m"],
    own: Float[np.ndarray, " m"],
    kept: Bool[np.ndarray, " n"],
) -> Ends:
    """Rates with Wilson's interval, their paired changes with Newcombe's."""
    del figure
    groups, level = bench.groups[kept], bench.spec.level
    rows = []
    for one in values:
        rate = summarise(one, groups, binary=True, level=level)
        change = difference(own, one, groups, binary=True, level=level).interval
        rows.append([rate.estimate, rate.low, rate.high, change.estimate, change.low, change.high])
    return tuple(np.array(rows).T)


def prompt_table(bench: Bench, measured: Measured, prompts: pl.DataFrame) -> pl.DataFrame:
    """Every measured value: row, id, split, series, alpha, and a column for each measure."""
    splits = np.where(bench.in_train, "train", "validation")
    names = list(dict.fromkeys(name for own in measured.values() for name in own))
    parts = []
    for (series, alpha), own in measured.items():
        columns: dict[str, Any] = {"row": bench.rows, "id": prompts["id"].gather(bench.rows), "split": splits}
        columns |= {"series": [series] * bench.rows.size, "alpha": [alpha] * bench.rows.size}
        empty = np.full(bench.rows.size, np.nan)
        parts.append(pl.DataFrame(columns | {name: own.get(name, empty) for name in names}))
    return pl.concat(parts).fill_nan(None)


def against_first(bench: Bench, measured: Measured, keys: Sequence[Key]) -> list[dict[str, Any]]:
    """Figures at equal KL, each difference minus the first one, paired, on validation.

    Rows {series, figure, value, low, high, units}; the first of `keys` is compared with. The intervals of one
    figure hold for all differences at once (Bonferroni): a title tells of all of them.
    """
    found = []
    first = measured[keys[0]]
    level = 1 - (1 - bench.spec.level) / max(1, len(keys) - 1)
    for figure in FIGURES:
        if figure.role != "wanted" or figure.name not in first:
            continue
        for key in keys[1:]:
            one, two = first[figure.name], measured[key][figure.name]
            kept = bench.members("wanted", "validation") & np.isfinite(one) & np.isfinite(two)
            if np.unique(bench.groups[kept]).size < 2:
                continue
            spec = bench.spec
            apart = difference(
                one[kept],
                two[kept],
                bench.groups[kept],
                binary=figure.kind == "rate",
                n_boot=spec.n_boot,
                level=level,
                seed=spec.seed,
            ).interval
            row = {"value": apart.estimate, "low": apart.low, "high": apart.high}
            row["units"] = int(np.unique(bench.groups[kept]).size)
            found.append({"series": key[0], "figure": figure.name, **row})
    return found
