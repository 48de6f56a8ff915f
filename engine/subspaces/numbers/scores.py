"""Tables of a sweep: per layer, summary, shares of ceilings, and what they say."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.stats.uncertainty import holm
from engine.subspaces.numbers.inputs import TENSORS
from engine.subspaces.numbers.registry import Description, definitions

Array = NDArray[np.float64]
Columns = dict[str, NDArray[np.generic]]

WEIGHTS = (*TENSORS, "combined")
INEXACT_CEILINGS = {"act": "TaskDiff_lora_ceiling", "combined": "dW_left_basis_ceiling"}


@dataclass(frozen=True)
class LeftOut:
    """A candidate without scores. `layer`: where it failed, None where it could not be tried."""

    candidate: str
    layer: int | None
    reason: str


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of candidates (C) at layers (L). Two are the same only if they are one.

    Measures in `tables`, each (C, L), NaN where not defined:
        rank: dimensions of the basis (below k: fewer directions exist).
        fraction_w, r_w, z_w, p_w, most_w, holm_w for w = act (D's rows at unit length), o_proj, down_proj and
            combined (both tensors at unit norm): share of energy inside; the same over rank/d; in standard
            deviations of the null; one-sided p-value; largest R of a subspace of this rank; p-values adjusted
            over candidates that aren't ceilings × averaged layers (act and combined only).
        r_scales_w, z_scales_w, p_scales_w for w = act, combined: the same against subspaces that keep the
            shares of every coordinate (`engine.stats.scales`); holm_w is of the larger p of both nulls.
            Missing in runs from before: holm_w is then of uniformly random subspaces only.
        r_specific, z_specific, p_specific, rank_specific: R_act outside the leading clean directions;
            taken_specific: how many there were.
        cosine: mean principal cosine with the change's own left singular vectors.

    Attributes:
        candidates: rows. layers: (L,). averaged: layers in the summary. k, broad, clean: ranks.
        ceilings: per moment, the largest energy fraction of a k-dimensional subspace (L,). d: model width.
        details: name -> (L, k), what a candidate shows besides.
        left_out: candidates without scores. target: name of the weight change.
    """

    candidates: tuple[Description, ...]
    tables: Mapping[str, Array]
    layers: NDArray[np.int64]
    averaged: NDArray[np.int64]
    k: int
    broad: int
    clean: int
    ceilings: Mapping[str, Array]
    d: int
    details: Mapping[str, Array]
    left_out: tuple[LeftOut, ...]
    target: str

    @classmethod
    def of(cls, *, candidates: tuple[Description, ...], tables: dict[str, Array], **rest: object) -> Scores:
        """Scores with Holm's adjustment added."""
        averaged, layers = np.asarray(rest["averaged"]), np.asarray(rest["layers"])
        real = np.array([entry.axis_kind != "ceiling" for entry in candidates], dtype=bool)
        family = real[:, None] & np.isin(layers, averaged)[None, :]
        for which in ("act", "combined"):
            p = tables[f"p_{which}"]
            p = np.maximum(p, tables[f"p_scales_{which}"]) if f"p_scales_{which}" in tables else p
            p = np.where(family, p, np.nan)
            tables[f"holm_{which}"] = holm(p.ravel()).reshape(p.shape)
        return cls(candidates, tables, **rest)  # type: ignore[arg-type]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.candidates)

    @cached_property
    def _here(self) -> NDArray[np.bool_]:
        """(L,): which layers are averaged."""
        return np.isin(self.layers, self.averaged)

    @cached_property
    def _means(self) -> dict[str, Array]:
        """Means that were asked for already."""
        return {}

    @property
    def scaled(self) -> bool:
        """Whether the null that keeps the coordinates' scales is there, beside uniformly random subspaces."""
        return "p_scales_combined" in self.tables

    def mean(self, measure: str) -> Array:
        """(C,): mean of a measure over the averaged layers where it is defined."""
        if measure not in self._means:
            self._means[measure] = mean_defined(self.tables[measure][:, self._here])
        return self._means[measure]

    def ceiling(self, which: str) -> Array:
        """(L,): the largest R that a k-dimensional subspace has, d/k where the moment's rank is at most k."""
        return np.where(self.ceilings[which] > 0, self.ceilings[which] * self.d / self.k, np.nan)

    def per_layer(self) -> Columns:
        """One row for each candidate and layer, as columns of one length."""
        count = len(self.layers)
        return {
            **{name: np.repeat(column, count) for name, column in self._described().items()},
            "layer": np.tile(self.layers, len(self.candidates)),
            "averaged": np.tile(self._here, len(self.candidates)),
            "below_k": (self.tables["rank"] < self.k).ravel(),
            **{name: table.ravel() for name, table in sorted(self.tables.items())},
        }

    def _described(self) -> Columns:
        return {
            "candidate": np.array(self.names),
            "family": np.array([entry.family for entry in self.candidates]),
            "axis_kind": np.array([entry.axis_kind for entry in self.candidates]),
            "source": np.array([entry.source for entry in self.candidates]),
        }

    def summary(self) -> Columns:
        """One row for each candidate: means over the averaged layers, best joint score first.

        joint = √(mean R_act · mean R_w), gap = log₂ mean R_act − log₂ mean R_w, R_w of both tensors combined.
        `percent_w`: mean R over the mean of the largest R at the candidate's own ranks. `percent_act_fit` and
        `percent_combined_concatenated`: mean R over that of the two ceilings that are not exact.
        `place`: 1 is best, among write and mixed, among read, and among ceilings apart.
        """
        r_act, r_w = self.mean("r_act"), self.mean("r_combined")
        with np.errstate(divide="ignore", invalid="ignore"):
            joint, gap = np.sqrt(r_act * r_w), np.log2(r_act) - np.log2(r_w)
        columns: Columns = {
            **self._described(),
            "joint": joint,
            "gap": gap,
            "place": self.places(joint),
            "rank": self.mean("rank"),
            "layers_below_k": (self.tables["rank"][:, self._here] < self.k).sum(axis=1),
        }
        for which in ("act", *WEIGHTS):
            columns |= {f"r_{which}": self.mean(f"r_{which}"), f"z_{which}": self.mean(f"z_{which}")}
            columns[f"percent_{which}"] = self.percent(which)
            if f"r_scales_{which}" in self.tables:
                columns |= {
                    f"{name}_{which}": self.mean(f"{name}_{which}") for name in ("r_scales", "z_scales")
                }
        columns |= {f"{name}_specific": self.mean(f"{name}_specific") for name in ("r", "z")}
        columns["cosine"] = self.mean("cosine")
        for which in ("act", "combined"):
            adjusted = self.tables[f"holm_{which}"][:, self._here]
            least = np.where(np.isnan(adjusted), np.inf, adjusted).min(axis=1)
            columns[f"holm_{which}"] = np.where(np.isfinite(least), least, np.nan)
            columns[f"layers_significant_{which}"] = (adjusted < 0.05).sum(axis=1)
        columns["percent_act_fit"] = self._percent_of("act")
        columns["percent_combined_concatenated"] = self._percent_of("combined")
        order = np.lexsort((np.arange(len(joint)), -np.nan_to_num(joint, nan=-np.inf)))
        return {name: column[order] for name, column in columns.items()}

    def percent(self, which: str) -> Array:
        """(C,): 100 · mean R / mean of the largest R at the same ranks, over the averaged layers."""
        return 100 * self.mean(f"r_{which}") / self.mean(f"most_{which}")

    def _percent_of(self, which: str) -> Array:
        name = INEXACT_CEILINGS[which]
        r = self.mean(f"r_{which}")
        if name not in self.names:
            return np.full(len(r), np.nan)
        return 100 * r / r[self.names.index(name)]

    def places(self, joint: Array) -> NDArray[np.int64]:
        """Rank by a score, apart for write and mixed, read, and ceilings; 0 where there is no score."""
        place = np.zeros(len(joint), dtype=np.int64)
        for kinds in (("write", "mixed"), ("read",), ("ceiling",)):
            group = [
                index
                for index, entry in enumerate(self.candidates)
                if entry.axis_kind in kinds and np.isfinite(joint[index])
            ]
            for position, index in enumerate(sorted(group, key=lambda index: -joint[index])):
                place[index] = position + 1
        return place

    def definitions(self) -> str:
        """Markdown table of the candidates."""
        return definitions({entry.name: entry for entry in self.candidates})


@dataclass(frozen=True)
class AtRank:
    """All that a sweep finds at one rank; `scores` chooses clean directions and layers from it.

    Attributes:
        candidates: rows (C). layers: (L,). changed: layers with a weight change.
        measures: (C, L) each, those of `Scores.tables` that don't depend on clean directions.
        specific: number of clean directions -> r, z, p, rank and taken (C, L), see `Scores.tables`.
        ceilings, details, left_out, k, broad, d, target: see `Scores`.
    """

    candidates: tuple[Description, ...]
    measures: Mapping[str, Array]
    specific: Mapping[int, Mapping[str, Array]]
    layers: NDArray[np.int64]
    changed: tuple[int, ...]
    ceilings: Mapping[str, Array]
    details: Mapping[str, Array]
    left_out: tuple[LeftOut, ...]
    k: int
    broad: int
    d: int
    target: str

    def scores(self, clean: int | None = None, layers: Sequence[int] | None = None) -> Scores:
        """Scores with `clean` directions taken out (k by default), averaged over `layers` (the changed ones).

        Raises:
            AnalysisError: a number of clean directions that wasn't computed, no change, or no such layers.
        """
        clean = self.k if clean is None else clean
        if clean not in self.specific:
            raise AnalysisError(
                "This number of clean directions was not computed.",
                expected=", ".join(map(str, sorted(self.specific))),
                given=clean,
            )
        specific = {f"{name}_specific": table for name, table in self.specific[clean].items()}
        return Scores.of(
            candidates=self.candidates,
            tables={**self.measures, **specific},
            layers=self.layers,
            averaged=self._averaged(layers),
            k=self.k,
            broad=self.broad,
            clean=clean,
            ceilings=self.ceilings,
            d=self.d,
            details=self.details,
            left_out=self.left_out,
            target=self.target,
        )

    def _averaged(self, layers: Sequence[int] | None) -> NDArray[np.int64]:
        if layers is None and not self.changed:
            raise AnalysisError(
                "The weight change is zero in what writes into the stream, which R_w is about.",
                expected="o_proj or down_proj changed in some layer",
                given=f"neither in {self.target}, whatever it changes elsewhere (embeddings, reads, norms)",
                next_step="choose another diff, or the layers to average: R_act there is defined.",
            )
        chosen = self.changed if layers is None else layers
        if not len(chosen) or not np.isin(chosen, self.layers).all():
            raise AnalysisError(
                "These layers cannot be averaged.",
                expected=f"some of {self.layers.tolist()}",
                given=list(chosen),
            )
        return np.unique(np.asarray(chosen, dtype=np.int64))


def mean_defined(values: Array) -> Array:
    """Mean along the last axis of what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=-1)
