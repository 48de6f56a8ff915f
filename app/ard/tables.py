"""Stored fits of lengthscales, read once, and what thresholds make of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import polars as pl
import streamlit as st

from app.ard.fields import ArdFields
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import tables as geometry_queries
from app.live.jobs import JobResult
from engine.ard import spec as ard_spec
from engine.ard import spectrum as ard_spectrum
from engine.ard.spectrum import Found, Spectrum
from engine.stats.uncertainty import holm
from store.reader import Store
from store.runs import RunLog

READ_OFF = ("outlier", "mixture")
"""Rules that read the threshold off the lengthscales."""


@dataclass(frozen=True)
class Fit:
    """One stored fit: experiment as plain data, its first start, and the starts of the null.

    Attributes:
        row: the engine's figures of the first start. log_lengthscales: (d,), natural logarithms.
        spectrum: its shape.
    """

    result: JobResult
    row: Mapping[str, Any]
    log_lengthscales: np.ndarray
    spectrum: Spectrum

    @property
    def condition(self) -> Mapping[str, Any]:
        return self.result.condition

    @property
    def layer(self) -> int:
        return int(self.condition["layer"])

    @property
    def penalty(self) -> float:
        return float(self.condition["penalty"])

    def p(self, tests: int = 1) -> float | None:
        """The held-out p that counts; None where nothing is tested. See `engine.ard.spectrum.judged`."""
        return ard_spectrum.judged(self.row["held_out"], tests)

    def found(self) -> Found:
        """The conclusion of this fit alone."""
        return self.concluded(self.p())

    def concluded(self, p: float | None) -> Found:
        """The conclusion from this held-out p."""
        return ard_spectrum.conclusion(self.spectrum.kind, collapsed=self.row["collapsed"], p=p)

    def surviving(self, selection: Selection) -> tuple[np.ndarray, float]:
        """(d,) dimensions under the threshold of the selected rule, and the threshold (log₁₀ ℓ).

        A rule that reads its threshold off the lengthscales finds none in a fit that collapsed.
        """
        own = ArdFields.of(selection)
        if self.row["collapsed"] and own.rule in READ_OFF:
            return np.zeros(len(self.log_lengthscales), dtype=bool), -np.inf
        if own.rule == "mixture":  # the spectrum is known: nothing is fitted again
            limit = -np.inf if self.spectrum.crossing is None else self.spectrum.crossing
            return self.log_lengthscales / np.log(10.0) < limit, limit
        rule = cast(ard_spectrum.Rule, own.rule)
        return ard_spectrum.surviving(self.log_lengthscales, rule, own.cut)

    def draws(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(log lengthscales, energy in the subspace started from) of every start; none from cold ones."""
        table = self.result.table
        if table["energy"].null_count():
            return []
        return [
            (part["log10_lengthscale"].to_numpy() * np.log(10.0), part["energy"].to_numpy())
            for part in table.partition_by("draw", maintain_order=True)
        ]


def fit_of(result: JobResult, prompts: pl.DataFrame) -> Fit:
    """A stored result with the shape of its first start's lengthscales.

    Args:
        prompts: of the store, whose categories say what was tested where an older run doesn't.
    """
    first = result.table.filter(pl.col("draw") == 0)
    logs = first["log10_lengthscale"].to_numpy() * np.log(10.0)
    row = result.summary["fits"][0]
    held = ard_spectrum.with_least_p(row["held_out"], ard_spec.categories(result.condition, prompts))
    return Fit(result, {**row, "held_out": held}, logs, ard_spectrum.spectrum(logs))


@st.cache_resource(show_spinner=False, max_entries=512)
def opened_fit(path: str, run_id: str) -> Fit:
    """A stored run by its id; runs never change."""
    run = RunLog(path).open(run_id)
    return fit_of(JobResult(run.condition, run.summary, run.tables), Store(path).prompts)


def stored(opened: Opened) -> dict[str, str]:
    """Run id of every stored fit by its experiment as text."""
    return {key_of(c): summary["run_id"] for c, summary in live_view.runs_of(opened, "ard")}


def key_of(condition: Mapping[str, Any]) -> str:
    """An experiment as text."""
    return json.dumps(condition, sort_keys=True)


def adjusted(fits: Sequence[Fit]) -> list[Found]:
    """Conclusions of fits that are looked at together: held-out p Holm-adjusted over those not collapsed."""
    tested = [i for i, fit in enumerate(fits) if fit.p() is not None and not fit.row["collapsed"]]
    known = [p for i in tested if (p := fits[i].p(len(tested))) is not None]
    if len(known) < len(tested):  # too few problems for so many blocks
        return [fit.concluded(None) for fit in fits]
    by = dict(zip(tested, holm(np.array(known)).tolist(), strict=True))
    return [fit.concluded(by.get(i)) for i, fit in enumerate(fits)]


def layers_table(fits: Sequence[Fit], selection: Selection) -> pl.DataFrame:
    """One row a fit: penalty, layer, found, under, threshold, value (|Z| where something was found)."""
    rows = []
    for penalty in sorted({fit.penalty for fit in fits}):
        same = sorted((f for f in fits if f.penalty == penalty), key=lambda f: f.layer)
        for fit, found in zip(same, adjusted(same), strict=True):
            kept, limit = fit.surviving(selection)
            rows.append(
                {
                    "penalty": penalty,
                    "layer": fit.layer,
                    "found": found,
                    "under": int(kept.sum()),
                    "threshold": None if not np.isfinite(limit) else float(limit),
                    "p_held_out": fit.p(),
                    "value": None if found in ("collapsed", "nothing found") else float(kept.sum()),
                }
            )
    return pl.DataFrame(rows, schema=LAYERS_SCHEMA)


LAYERS_SCHEMA = {
    "penalty": pl.Float64,
    "layer": pl.Int64,
    "found": pl.String,
    "under": pl.Int64,
    "threshold": pl.Float64,
    "p_held_out": pl.Float64,
    "value": pl.Float64,
}
OVERLAP_SCHEMA = {
    "layer": pl.Int64,
    "survivors": pl.Int64,
    "shared": pl.Int64,
    "chance": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_adjusted": pl.Float64,
    "energy": pl.Float64,
    "starts": pl.Int64,
}


def overlap_table(
    opened: Opened, fits: Sequence[Fit], nulls: Mapping[int, Fit], selection: Selection
) -> pl.DataFrame:
    """Survivors of each block against its Z at the selected k; blocks without a finding are left out.

    Args:
        fits: of one λ, one a block. nulls: fits from random starts by block, for fits started from Z.
    """
    rows: list[dict[str, Any]] = []
    order = sorted(fits, key=lambda fit: fit.layer)
    for fit, found in zip(order, adjusted(order), strict=True):
        kept, _ = fit.surviving(selection)
        if found in ("collapsed", "nothing found") or not kept.any():
            continue
        model, joined, layer = fit.condition["model"], selection.joined, fit.layer
        basis = geometry_queries.bases(opened.store, model, joined, layer)[selection.k]
        started = fit.condition["start"] == "svd"
        one = ard_spectrum.overlap(kept, basis, warm_started=started)
        row = {"layer": layer, "survivors": int(kept.sum()), "shared": one.shared, "energy": one.energy}
        rows.append(
            row
            | (
                _from_random(one.shared, nulls.get(layer), selection)
                if started
                else _chance(one, kept, basis)
            )
        )
    p = [row["p"] for row in rows]
    tested = [i for i, value in enumerate(p) if value is not None]
    for i, value in zip(tested, holm(np.array([p[i] for i in tested])).tolist(), strict=True):
        rows[i]["p_adjusted"] = value
    return pl.DataFrame(rows, schema=OVERLAP_SCHEMA)


def _chance(found: ard_spectrum.Overlap, kept: np.ndarray, basis: np.ndarray) -> dict[str, Any]:
    low, high = ard_spectrum.overlap_range(int(kept.sum()), basis.shape[1], basis.shape[0])
    return {"chance": found.chance, "low": low, "high": high, "p": found.p}


def _from_random(shared: int, null: Fit | None, selection: Selection) -> dict[str, Any]:
    """What fits keep of random subspaces that they started from; nothing where there are none."""
    if null is None:
        return {"p": None}
    kept = []
    for logs, energy in null.draws():
        fit = Fit(null.result, null.row, logs, ard_spectrum.spectrum(logs))
        kept.append(
            ard_spectrum.energy_overlap(fit.surviving(selection)[0], energy, null.condition["k"]).shared
        )
    low, high = np.quantile(kept, [0.025, 0.975])
    return {
        "chance": float(np.mean(kept)),
        "low": low,
        "high": high,
        "p": ard_spectrum.start_p(shared, kept),
        "starts": len(kept),
    }
